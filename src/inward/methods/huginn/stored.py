"""Which blocks lie in a folder of a retrofitted model (arXiv 2511.07384, see retrofit.py)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from inward.common.weights import tensor_names
from inward.methods.huginn import fields
from inward.methods.huginn.config import HuginnConfig

OF_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where files are."""


def as_stored(source: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `from_pretrained`, with the configuration that the names of the weights
    tell: a retrofitted model's config.json is the same for Llama's blocks and OLMo-2's."""
    config, place = kwargs.get("config"), {k: kwargs[k] for k in OF_HUB if k in kwargs}
    if config is None:
        try:
            row, _ = HuginnConfig.get_config_dict(source, **place)
        except OSError:
            return kwargs  # the loader says what it looked for
        if not fields.is_retrofitted(row):
            return kwargs
        said = {name: kwargs.pop(name) for name in fields.PUBLISHED if name in kwargs}
        config = HuginnConfig.from_dict(row | said)
    told = isinstance(config, HuginnConfig) and (config.rope_pairs, config.qk_norm)
    if told == ("halves", False) and any(".q_norm." in name for name in names_at(source, place)):
        config = copy.copy(config)
        config.block_class_name, config.qk_norm = "SwinBlock", "projection"
    return kwargs | {"config": config}


def names_at(source: Any, place: dict[str, Any]) -> list[str]:
    """Names of the tensors of a folder or a repository; none if there are no safetensors."""

    def file(name: str) -> str | None:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **place)

    if index := file("model.safetensors.index.json"):
        return list(json.loads(Path(index).read_text(encoding="utf-8")).get("weight_map", {}))
    single = file("model.safetensors")
    return tensor_names(Path(single)) if single else []
