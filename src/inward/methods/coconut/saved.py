"""A Coconut model in files: config.json, base/, tokenizer/, and the stabilisers' weights."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from inward.common.bases import open_tokenizer
from inward.common.files import read_object
from inward.common.weights import check_fit, read_tensors
from inward.data.thoughts.segments import Specials
from inward.methods.coconut.base import load_base, own_tokens, save_base
from inward.methods.coconut.settings import CoconutSettings

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

MODEL_TYPE = "inward_coconut"


def save(model: Coconut, folder: str | Path, **kwargs: Any) -> None:
    """See `Coconut.save_pretrained`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    save_base(model.base, folder / "base", **kwargs)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder / "tokenizer")
    weights = {name: t.contiguous() for name, t in model.feedback.state_dict().items()}
    if weights:
        save_file(weights, folder / "feedback.safetensors.tmp")
        os.replace(folder / "feedback.safetensors.tmp", folder / "feedback.safetensors")
    config = {
        "model_type": MODEL_TYPE,
        "specials": asdict(model.specials),
        "settings": asdict(model.settings),
    }
    temporary = folder / "config.json.tmp"
    temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "config.json")


def read(
    made: type[Coconut],
    folder: Path,
    base: nn.Module | str | Path | None,
    kwargs: dict[str, Any],
) -> Coconut:
    """See `Coconut.from_pretrained`."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no Coconut model: there is no config.json")
    config = read_object(path)
    if config.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{folder}: model_type is {config.get('model_type')!r}, not {MODEL_TYPE!r}; "
            "use inward.hub.load"
        )
    tokenizer = None
    if (folder / "tokenizer").is_dir():
        tokenizer = open_tokenizer(folder / "tokenizer")
    specials = Specials(**config["specials"])
    num_tokens = 1 + max(own_tokens(tokenizer, specials))
    model = made(
        load_base(folder / "base", base, num_tokens=num_tokens, **kwargs),
        specials,
        CoconutSettings(**config["settings"]),
        tokenizer=tokenizer,
    )
    extra = folder / "feedback.safetensors"
    tensors = read_tensors(extra) if extra.is_file() else {}
    check_fit(tensors, model.feedback.state_dict(), extra)
    model.feedback.load_state_dict(tensors)
    return model
