"""The TRM paper's own checkpoints, read and written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from inward.common.files import read_text, replacing
from inward.common.weights import check_fit, read_tensors

if TYPE_CHECKING:
    from inward.methods.trm.model import TRM, TRMSettings


_PREFIXES = ("_orig_mod.model.inner.", "model.inner.")


_REFERENCE_TO_OURS = [
    (r"^H_init$", "y_init"),
    (r"^L_init$", "z_init"),
    (r"^embed_tokens\.embedding_weight$", "embed_tokens.weight"),
    (r"^embed_pos\.embedding_weight$", "embed_positions.weight"),
    (r"^puzzle_emb\.weights$", "identifiers.weight"),
    (r"^L_level\.layers\.(\d+)\.(?:self_attn|mlp_t)\.", r"network.blocks.\1.mixer."),
    (r"^L_level\.layers\.(\d+)\.mlp\.", r"network.blocks.\1.mlp."),
]


def _ours(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for pattern, ours in _REFERENCE_TO_OURS:
        name, hits = re.subn(pattern, ours, name)
        if hits:
            return name
    return name


def _reference(name: str, mixer: str) -> str:
    """The reference's name (without prefix) of one of ours."""
    fixed = {ours: re.sub(r"[\\^$]", "", pattern) for pattern, ours in _REFERENCE_TO_OURS[:5]}
    mixing = "mlp_t" if mixer == "mlp" else "self_attn"
    name = fixed.get(name, name)
    name = re.sub(r"^network\.blocks\.(\d+)\.mixer\.", rf"L_level.layers.\1.{mixing}.", name)
    return re.sub(r"^network\.blocks\.(\d+)\.mlp\.", r"L_level.layers.\1.mlp.", name)


def reference_settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TRMSettings:
    """`TRMSettings` from the reference's configuration (the flat one, or the `arch` part of
    all_config.yaml).

    Vocabulary, table size and, for the token MLP, the length are read off the tensors (our names),
    because
    all_config.yaml lacks them.

    Raises:
        ValueError: a name that the settings need is nowhere to be found.
    """
    from inward.methods.trm.model import TRMSettings

    config = {**config, **config.get("arch", {})}
    table = tensors.get("identifiers.weight")
    width = int(config.get("puzzle_emb_ndim", 0)) if table is None else table.shape[1]
    D = int(config.get("hidden_size", tensors["embed_tokens.weight"].shape[1]))
    prefix = int(config.get("puzzle_emb_len", 16)) or -(-width // D)
    mixing = tensors.get("network.blocks.0.mixer.down_proj.weight")
    seq_len = config.get("seq_len") if mixing is None else mixing.shape[0] - prefix
    lacking = {"H_cycles", "L_cycles"} - config.keys()
    if lacking or seq_len is None:
        raise ValueError(
            f"the reference configuration lacks {sorted(lacking) or 'seq_len'}; "
            "pass config= (all_config.yaml) and, for attention, seq_len="
        )
    positions = config.get("pos_encodings", "rope")
    loss = str(
        config.get("loss_type", config.get("loss", {}).get("loss_type", "stablemax_cross_entropy"))
    )
    return TRMSettings(
        vocab_size=tensors["embed_tokens.weight"].shape[0],
        seq_len=int(seq_len),
        hidden_size=D,
        num_layers=1
        + max(int(m[1]) for m in map(re.compile(r"network\.blocks\.(\d+)").match, tensors) if m),
        num_heads=int(config.get("num_heads", 8)),
        expansion=float(config.get("expansion", 4)),
        mixer="attention" if mixing is None else "mlp",
        # the reference builds a rotary table for the token MLP too, and never reads it
        positions="none" if mixing is not None and positions == "rope" else positions,
        T=int(config["H_cycles"]),
        n=int(config["L_cycles"]),
        latents=2 if "y_init" in tensors else 1,
        n_sup=int(config.get("halt_max_steps", 16)),
        exploration=float(config.get("halt_exploration_prob", 0.1)),
        loss="softmax" if loss.startswith("softmax") else "stablemax",
        prefix_len=prefix,
        num_identifiers=0 if table is None else table.shape[0],
        identifier_dim=None if table is None else width,
        compute_dtype=config.get("forward_dtype", "bfloat16"),
        norm_eps=float(config.get("rms_norm_eps", 1e-5)),
        rope_theta=float(config.get("rope_theta", 10000.0)),
    )


def _read_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    import yaml  # transformers depends on it; JSON is YAML too

    try:
        read = yaml.safe_load(read_text(config))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is neither YAML nor JSON: {error}") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"{config} holds no configuration (names with values)")
    return read


_OTHERS = {
    r"^H_level\.": "HRM (two networks, H_level and L_level)",
    r"^L6_init$": "the reference's variant with six latents (trm_hier6)",
    r"^layers\.": "the reference's transformer baseline",
}
"""Tensor names (ours, so without prefix) of models that the reference's trainer saves too."""


def _check_kind(tensors: Mapping[str, Tensor], path: object) -> None:
    """Name another model of the reference's family: its tensors look like a damaged TRM's."""
    for pattern, kind in _OTHERS.items():
        if any(re.match(pattern, name) for name in tensors):
            raise ValueError(
                f"{path} is a checkpoint of {kind}; this library has TRM alone (one network, "
                "L_level, for both updates), so run it with the code that wrote it"
            )
    if "embed_tokens.weight" not in tensors:
        raise ValueError(
            f"{path} is no TRM checkpoint: it has no embed_tokens; it has {sorted(tensors)[:4]} ..."
        )


def load_reference(
    path: str | Path,
    config: Mapping[str, Any] | str | Path,
    *,
    num_identifiers: int | None = None,
    **overrides: Any,
) -> TRM:
    """Load a checkpoint of the TRM paper's code: prefixes `_orig_mod.model.inner.` or
    `model.inner.` or none, initial
    states in any dtype, any size of identifier table.

    Args:
        path: safetensors, or the file that its trainer saved (read with weights_only=True).
        config: its configuration as a mapping or the path of all_config.yaml / config.json.
        num_identifiers: the table size wanted; further rows start at the mean row (see
            TRM.resize_identifiers).
        overrides: TRMSettings fields, or the reference's own names (seq_len=900).
    Raises:
        FileNotFoundError, ValueError: no such file; unreadable; names or shapes that do not fit;
            NaN.
    """
    from dataclasses import fields, replace

    from inward.methods.trm.model import TRM, TRMSettings

    tensors = {_ours(name): tensor.float() for name, tensor in read_tensors(path).items()}
    _check_kind(tensors, path)
    own = {field.name for field in fields(TRMSettings)}
    settings = reference_settings({**_read_config(config), **overrides}, tensors)
    settings = replace(
        settings, **{name: value for name, value in overrides.items() if name in own}
    )
    model = TRM(settings)
    check_fit(tensors, model.state_dict(), path)
    model.load_state_dict(tensors)
    if num_identifiers is not None:
        model.resize_identifiers(num_identifiers)
    return model.eval()


def save_reference(model: TRM, path: str | Path, *, prefix: str = "_orig_mod.model.inner.") -> None:
    """Write the reference's names and dtypes: safetensors, or what its own loader reads if the
    suffix is another.

    Raises:
        ValueError: the reference cannot load this model, or would compute something else with it;
            every reason is named.
    """
    settings = model.settings
    if reasons := unlike_reference(model):
        raise ValueError(
            f"the reference code cannot load this model: {'; '.join(reasons)}. Use save_pretrained"
        )
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = (
            tensor.to(getattr(torch, settings.compute_dtype)) if name.endswith("_init") else tensor
        )
        tensors[prefix + _reference(name, settings.mixer)] = tensor.contiguous().cpu()
    with replacing(path) as partial:
        if Path(path).suffix == ".safetensors":
            save_file(tensors, partial)
        else:
            torch.save(tensors, partial)


_MULTIPLE = 256  # to which the reference rounds the widths of its SwiGLUs up


def unlike_reference(model: TRM) -> list[str]:
    """What the reference's classes have no place for, in words; [] if they hold the model.

    How a model was trained (gradient, supervision, loss) is no part of it: its checkpoint loads.
    """
    settings, found = model.settings, []
    if settings.mixer not in ("mlp", "attention"):
        found.append(f"it has no mixer {settings.mixer!r}")
    if settings.positions == "rope2d":
        found.append("it has no 2-D rotary positions")
    if settings.mask_padding:
        found.append("it attends to padding (mask_padding)")
    if not settings.answer_update:
        found.append("it always updates the answer (answer_update=False)")
    return found or [*_prefix_unlike(settings), *_widths_unlike(model)]


def _prefix_unlike(settings: TRMSettings) -> list[str]:
    """Without a table its prefix rows are missing from the input, but not from the states; and a
    prefix of 0 rows means to it as many as the table's vectors fill."""
    P, D = settings.prefix_len, settings.hidden_size
    if not settings.num_identifiers and P:
        return [
            f"without an identifier table (num_identifiers=0) it has no prefix, here of {P} rows; "
            "train with num_identifiers=1 for it"
        ]
    filled = -(-settings.identifier_width // D)
    if settings.num_identifiers and not P:
        return [f"with an identifier table it has at least {filled} prefix rows, here 0"]
    return []


def _widths_unlike(model: TRM) -> list[str]:
    """SwiGLUs whose width is not that of the reference, which rounds up to 256."""
    settings, block = model.settings, cast(Any, model.network).blocks[0]
    sides = {"hidden_size": (settings.hidden_size, block.mlp)}
    if settings.mixer == "mlp":
        sides["seq_len + prefix_len"] = (settings.seq_len + settings.prefix_len, block.mixer)
    found = []
    for name, (side, swiglu) in sides.items():
        least = round(settings.expansion * side * 2 / 3)
        theirs, own = _MULTIPLE * math.ceil(least / _MULTIPLE), swiglu.width
        if own != theirs:
            found.append(
                f"its SwiGLU for {name} {side} is {theirs} wide, here {own} (swiglu_multiple "
                f"{settings.swiglu_multiple}, not {_MULTIPLE})"
            )
    return found
