"""Load, save, and translate checkpoints. Weights are safetensors; a file that does not fit says
how.

    load("maze11")                      a model that ships with the package
    load("runs/mine/model")             a folder written by save_pretrained (any method)
    load_reference("step_65104", ...)   a checkpoint of the TRM paper's own code
    save_reference(model, "back.safetensors")

Importing a method's module registers its Auto classes with transformers; `load` does that itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError  # to catch what torch.load raises; nothing is unpickled
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from inward.methods.trm import TRM, TRMSettings

CLASSES = {
    "inward_trm": ("inward.methods.trm", "TRM"),
    "huginn_raven": ("inward.methods.huginn", "HuginnForCausalLM"),
    "inward_coconut": ("inward.methods.coconut", "Coconut"),
    "inward_tidar": ("inward.methods.tidar", "TiDAR"),
}
"""config.json's model_type -> where the class lives"""

TIDAR = "tidar.json"
"""beside the files of the model that TiDAR wraps"""

SHIPPED = Path(__file__).parent / "checkpoints"


def shipped() -> dict[str, Path]:
    """Names and folders of the checkpoints that come with the package."""
    found = [path for name in ("config.json", TIDAR) for path in SHIPPED.glob(f"*/{name}")]
    return {path.parent.name: path.parent for path in sorted(found)}


def resolve(name_or_path: str | Path) -> Path:
    """A folder with a model: itself, or the shipped one of that name.

    Raises:
        FileNotFoundError: neither exists, or the folder holds no config.json.
    """
    path = Path(name_or_path)
    if not path.exists() and str(name_or_path) in shipped():
        return shipped()[str(name_or_path)]
    if (path / "model").is_dir() and (path / "summary.json").exists():
        return path / "model"  # a run folder
    if not any((path / name).exists() for name in ("config.json", TIDAR)):
        raise FileNotFoundError(
            f"{name_or_path} is no model folder (no config.json in it) and no shipped model; "
            f"shipped are: {', '.join(shipped()) or 'none'}"
        )
    return path


def load(name_or_path: str | Path, **kwargs: Any) -> Any:
    """Load a model of any method (TRM, HuginnForCausalLM, Coconut, TiDAR), in evaluation mode.

    Raises:
        FileNotFoundError: there is no such folder or shipped model.
        ValueError: an unknown model type, or weights that do not fit (missing, unexpected, wrong
            shape, NaN).
    """
    path = resolve(name_or_path)
    model_type = _model_type(path)
    if model_type not in CLASSES:
        raise ValueError(f"{path}: model_type is {model_type!r}, known are {sorted(CLASSES)}")
    module, name = CLASSES[model_type]
    return getattr(import_module(module), name).from_pretrained(path, **kwargs).eval()


def _model_type(path: Path) -> str | None:
    """A TiDAR model's config.json is that of the model it wraps: its own file says what it is."""
    if (path / TIDAR).exists():
        return "inward_tidar"
    return json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")


# --------------------------------------------------------------------------------------------------
# Checks


def complain(source: object, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    """Raise one ValueError that lists every name that does not fit, if there is any."""
    parts = [("missing", missing), ("unexpected", unexpected), ("of wrong shape", wrong)]
    told = [f"{title}: {', '.join(sorted(names))}" for title, names in parts if names]
    if told:
        raise ValueError(f"{source} does not fit the model; " + "; ".join(told))


def check_fit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object
) -> None:
    """Compare names and shapes, and look for values that are not numbers.

    Raises:
        ValueError: names are missing, unexpected or of wrong shape; or a tensor holds NaN or
            infinity.
    """
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    complain(
        source,
        list(expected.keys() - tensors.keys()),
        list(tensors.keys() - expected.keys()),
        wrong,
    )
    check_finite(tensors, source)


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise a ValueError that names every tensor with NaN or infinity in it."""
    bad = [
        name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()
    ]
    if bad:
        raise ValueError(
            f"{source} holds NaN or infinity in {', '.join(sorted(bad))}; the checkpoint is damaged"
        )


def strict(from_pretrained: Callable[..., Any], source: object, *args: Any, **kwargs: Any) -> Any:
    """Run transformers' `from_pretrained` and turn what it only warns about into one ValueError."""
    wanted = kwargs.pop("output_loading_info", False)
    try:
        model, info = from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except SafetensorError as error:
        raise ValueError(
            f"{source}: the weights cannot be read ({error}); the file is cut or damaged"
        ) from error
    wrong = [
        f"{name} {tuple(found)} instead of {tuple(want)}"
        for name, found, want in info["mismatched_keys"]
    ]
    complain(source, list(info["missing_keys"]), list(info["unexpected_keys"]), wrong)
    check_finite(model.state_dict(), source)
    return (model, info) if wanted else model


# --------------------------------------------------------------------------------------------------
# The TRM paper's own checkpoints

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


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a torch file read with weights_only=True (no code of
    the file runs).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error


def reference_settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TRMSettings:
    """`TRMSettings` from the reference's configuration (the flat one, or the `arch` part of
    all_config.yaml).

    Vocabulary, table size and, for the token MLP, the length are read off the tensors (our names),
    because
    all_config.yaml lacks them.

    Raises:
        ValueError: a name that the settings need is nowhere to be found.
    """
    from inward.methods.trm import TRMSettings

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

    read = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    if not isinstance(read, Mapping):
        raise ValueError(f"{config} holds no configuration (names with values)")
    return read


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

    from inward.methods.trm import TRM, TRMSettings

    tensors = {_ours(name): tensor.float() for name, tensor in read_tensors(path).items()}
    if "embed_tokens.weight" not in tensors:
        raise ValueError(
            f"{path} is no TRM checkpoint: it has no embed_tokens; it has {sorted(tensors)[:4]} ..."
        )
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
        ValueError: the reference has no place for this model (convolution mixer, 2-D rotary,
            masked padding).
    """
    settings = model.settings
    if settings.mixer == "conv" or settings.positions == "rope2d" or settings.mask_padding:
        raise ValueError(
            "the reference code has no convolution mixer, 2-D rotary positions or padding "
            "mask, so this model cannot "
            "be written for it; use save_pretrained"
        )
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = (
            tensor.to(getattr(torch, settings.compute_dtype)) if name.endswith("_init") else tensor
        )
        tensors[prefix + _reference(name, settings.mixer)] = tensor.contiguous().cpu()
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, temporary) if path.suffix == ".safetensors" else torch.save(
        tensors, temporary
    )
    os.replace(temporary, path)
