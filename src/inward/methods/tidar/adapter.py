"""A draft-only adapter: any model keeps its words and learns to draft them.

TiDAR (arXiv 2511.08923) trains the whole model, which changes what it says. Here low-rank weights
act on mask rows alone: clean rows run through the model as it is, so at equal shapes their logits
have the same bits with and without the adapter, and greedy text is the same whatever the adapter
holds; a bad one only costs time. (Nemotron-Labs-Diffusion, arXiv 2607.05722, does so with one
projection; PEFT's own switches act on whole modules, not on rows.)

    with adapter.acting_on(rows):        # rows (B, n) bool
        model(...)                       # y = W x everywhere;  y += (alpha / r) B A x on rows only

The added term is computed for those rows and added in place, not multiplied by 0 elsewhere: the
base rows are not touched at all. Nobody sees mask rows but their own block, so their changed keys
and values stay there too. On a CPU the price of a layer's term is that of its calls, not of its
arithmetic: few layers of high rank (`AdapterSettings.targets`) draft cheaper than all of low rank.

Files are PEFT's: adapter_config.json and adapter_model.safetensors with its names, so PEFT loads
and merges them; plus draft.safetensors, the embedding of the mask token, which lies beyond the
model's vocabulary: the model is not resized. The model's name stands in tidar.json alone, see
`_no_base`.

Training needs a backward pass through the mask rows alone, and of these through blocks that have
anything to predict (a question has not): the clean half runs once without gradient and leaves its
keys and values in a cache. The text to learn from is the model's own, because its own words are
what it will have to draft: see `own_text`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inward.common import IGNORE
from inward.common.files import read_object, reading, write_json, write_tensors
from inward.common.taken import among_taken
from inward.common.weights import check_finite, complain, read_tensors
from inward.methods.tidar.adapter_loss import _kept, draft_logits, needed_rows
from inward.methods.tidar.settings import AdapterSettings

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR
    from inward.methods.tidar.samples import Part

_ACTING: ContextVar[dict[object, tuple[DraftAdapter, Any]]] = ContextVar("acting", default={})  # noqa: B039
"""Who acts for an adapter (it, or a twin of it), and on which rows: of each thread its own, since
the model and its layers, where the adapter listens, are shared. Never written to, only replaced."""
_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's layers"""


class DraftAdapter(nn.Module):
    """Low-rank weights for the linear layers of `model`, and an embedding for the mask token.

    own_mask   the mask token's embedding belongs to the adapter (it starts as the mean row);
               False: the model has a row for it
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: AdapterSettings | None = None,
        *,
        own_mask: bool = True,
    ) -> None:
        super().__init__()
        self.settings = settings or AdapterSettings()
        self.layers = linear_layers(model, self.settings.targets)
        self.scale = self.settings.alpha / self.settings.rank
        self.fan_in_fan_out = any(isinstance(m, Conv1D) for m in self.layers.values())
        device = model.device
        generator = torch.Generator().manual_seed(self.settings.seed)
        r = self.settings.rank
        # names with dots are no names for torch
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        for name, layer in self.layers.items():
            num_in, num_out = _width(layer)
            A = torch.empty(r, num_in).uniform_(-1, 1, generator=generator) / math.sqrt(num_in)
            self.lora_A[_key(name)] = _linear(A.to(device))
            # B = 0: before training the adapter adds nothing
            self.lora_B[_key(name)] = _linear(torch.zeros(num_out, r, device=device))
        self.mask_embedding = None
        if own_mask:
            table = cast(nn.Embedding, model.get_input_embeddings())
            self.mask_embedding = nn.Parameter(table.weight.detach().float().mean(0))
        self._hooks: list[Any] = []
        self._name = object()  # of the adapter and its twins

    # -- acting ------------------------------------------------------------------------------------

    def attach(self, model: PreTrainedModel) -> None:
        """Listen to the layers of `model`; until `acting_on` nothing happens in them."""
        self.detach()
        modules = dict(model.named_modules())
        for name in self.layers:
            hook = _Hook(self, _key(name))
            self._hooks.append(modules[name].register_forward_hook(hook))

    def detach(self) -> None:
        """Leave the model alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def acting_on(self, rows: Tensor) -> Iterator[None]:
        """Within: the layers' outputs for these rows, (B, n) bool, get the low-rank term."""
        chosen = _run(rows.flatten().nonzero()[:, 0])
        before = _ACTING.set({**_ACTING.get(), self._name: (self, chosen)})
        try:
            yield
        finally:
            _ACTING.reset(before)

    def add_to(self, output: Tensor, x: Tensor, key: str) -> None:
        """output[rows] += scale * B A x[rows], in place."""
        own, rows = _ACTING.get().get(self._name, (self, None))
        if rows is None:
            return
        rows = among_taken(rows)
        A, B = own.lora_A[key], own.lora_B[key]
        chosen, into = x.flatten(0, -2)[rows], output.view(-1, output.shape[-1])
        change = B(A(chosen.to(cast(Tensor, A.weight).dtype))).to(output.dtype)
        if isinstance(rows, slice):
            into[rows].add_(change, alpha=self.scale)
        else:
            into.index_add_(0, rows, change, alpha=self.scale)

    # -- training ----------------------------------------------------------------------------------

    def losses(self, tidar: TiDAR, part: Part) -> dict[str, Tensor]:
        """Sums of the diffusion branch (see `inward.methods.tidar.losses.branch`)."""
        from inward.methods.tidar.samples import draft_branch, draft_part  # it knows this module

        count = (part.wanted != IGNORE).sum()
        part = draft_part(part, tidar.settings)
        kept = needed_rows(part)
        logits, taught = draft_logits(tidar, part, kept)
        sums = draft_branch(logits, _kept(part, kept), tidar.settings, taught)
        return sums | {"count": count}

    # -- files -------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, base: str = "") -> None:
        """Write PEFT's two files, and draft.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in self.layers:
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = self.lora_A[_key(name)].weight
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = self.lora_B[_key(name)].weight
        write_tensors(folder / "adapter_model.safetensors", tensors)
        if self.mask_embedding is not None:
            write_tensors(folder / "draft.safetensors", {"mask_embedding": self.mask_embedding})
        write_json(
            folder / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": _no_base(base),
                "r": self.settings.rank,
                "lora_alpha": self.settings.alpha,
                "lora_dropout": 0.0,
                "target_modules": sorted(self.layers),
                "fan_in_fan_out": self.fan_in_fan_out,
                "bias": "none",
                "inference_mode": True,
            },
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: PreTrainedModel) -> DraftAdapter:
        """Load an adapter for `model`, in its dtype: ours, or a LoRA that PEFT wrote (which then
        acts on mask rows only, and has no mask embedding). To train on below float32, `.float()`
        it first, or small steps are rounded away.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another kind of adapter, names or shapes that do not fit, NaN.
        """
        with reading(folder):
            return cls._read(Path(folder), model)

    @classmethod
    def _read(cls, folder: Path, model: PreTrainedModel) -> DraftAdapter:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} holds no adapter: {name} is missing")
        config = read_object(folder / "adapter_config.json", "r", "lora_alpha")
        _check_kind(config, folder)
        saved = read_tensors(folder / "adapter_model.safetensors")
        _check_rank(config["r"], saved, folder)
        names = sorted(
            {n.removeprefix(_PREFIX).rpartition(".lora_")[0] for n in saved if ".lora_" in n}
        )
        settings = AdapterSettings(rank=config["r"], alpha=config["lora_alpha"])
        own = folder / "draft.safetensors"
        adapter = cls(model, settings, own_mask=own.exists())
        adapter._keep(names, folder)
        tensors = {_short(name): tensor for name, tensor in saved.items()}
        if own.exists():
            tensors |= read_tensors(own)
        adapter._fill(tensors, folder)
        return adapter.to(model.dtype)

    def _keep(self, names: list[str], source: Path) -> None:
        """Restrict the adapter to some of the model's layers."""
        complain(source, [], sorted(set(names) - set(self.layers)), [])
        self.layers = {name: self.layers[name] for name in names}
        for table in (self.lora_A, self.lora_B):
            for key in [key for key in table if key not in {_key(name) for name in names}]:
                del table[key]

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor], source: Path) -> None:
        into: dict[str, Any] = {f"{n}/A": self.lora_A[_key(n)].weight for n in self.layers}
        into |= {f"{n}/B": self.lora_B[_key(n)].weight for n in self.layers}
        if self.mask_embedding is not None:
            into["mask_embedding"] = self.mask_embedding
        wrong = [
            f"{n} {tuple(tensors[n].shape)} instead of {tuple(into[n].shape)}"
            for n in into.keys() & tensors.keys()
            if tensors[n].shape != into[n].shape
        ]
        missing, unexpected = into.keys() - tensors.keys(), tensors.keys() - into.keys()
        complain(source, list(missing), list(unexpected), wrong)
        check_finite(tensors, source)
        for name, parameter in into.items():
            parameter.copy_(tensors[name])


def _check_rank(rank: object, saved: dict[str, Tensor], source: Path) -> None:
    """Before matrices of that rank are made."""
    found = {tensor.shape[0] for name, tensor in saved.items() if ".lora_A." in name}
    if found - {rank}:
        raise ValueError(f"{source}: adapter_config.json says r = {rank}, the weights {found}")


def _run(rows: Tensor) -> Tensor | slice | None:
    """The same places, rising, as a slice where they follow each other; None where none is."""
    if len(rows) == 0:
        return None
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def linear_layers(
    model: PreTrainedModel, targets: tuple[str, ...] = ()
) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers of a model by name, without the vocabulary head; only those whose last
    part of the name is in `targets`, if any is given.

    Raises:
        ValueError: none is left.
    """
    head = model.get_output_embeddings()
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    chosen = {n: m for n, m in found.items() if not targets or n.rpartition(".")[2] in targets}
    if not chosen:
        ends = sorted({name.rpartition(".")[2] for name in found})
        raise ValueError(
            f"{type(model).__name__} has no linear layer named {list(targets)}; it has {ends}"
        )
    return chosen


def _width(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """(inputs, outputs); GPT-2's Conv1D keeps its matrix the other way round."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features


def _linear(weight: Tensor) -> nn.Linear:
    """x -> x W^T; a module, so that what speeds such modules up speeds up these too."""
    num_out, num_in = weight.shape
    options = {"bias": False, "device": weight.device}
    layer = cast(nn.Linear, nn.utils.skip_init(nn.Linear, num_in, num_out, **options))
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _key(name: str) -> str:
    return name.replace(".", "/")


def _no_base(name: str) -> str:
    """What the file names as the model that the adapter belongs to. Were it the model, a bare
    `AutoModelForCausalLM.from_pretrained` would let the adapter act on every row, and the model
    would say other words; so it is a name that cannot be opened, and says what to do."""
    return f"a draft-only adapter of {name or 'another model'}: open it with inward.load"


def _short(name: str) -> str:
    """PEFT's name of a tensor without what is the same in all: model.layers.0.mlp.up_proj/A."""
    return re.sub(r"\.lora_([AB])\.weight$", r"/\1", name.removeprefix(_PREFIX))


@dataclass
class _Hook:
    """What listens to a layer; no function, so that a copy of the model listens to its own
    adapter."""

    adapter: DraftAdapter
    key: str

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.adapter.add_to(output, args[0], self.key)


def _check_kind(config: dict[str, Any], source: Path) -> None:
    strange = [
        name
        for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
        if config.get(name)
    ]
    if config.get("peft_type") != "LORA" or strange or config.get("bias", "none") != "none":
        raise ValueError(
            f"{source} holds a {config.get('peft_type')} adapter with {strange or 'biases'}; "
            "a draft-only adapter is plain LoRA without biases"
        )


# --------------------------------------------------------------------------------------------------
# The model's own text
