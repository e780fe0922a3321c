"""The processes of `trm`: ours, the official code, and the matrix products alone.

Each reads an order, a line of JSON, builds its side, and then answers one word per line: "outputs"
(to compare), "step" or "forward" (seconds); see `process`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from inward.bench.process import clock, commit_of, serve

if TYPE_CHECKING:
    from torch import Tensor

    from inward.methods.trm.settings import TRMSettings

MODEL_FILE = Path("models", "recursive_reasoning", "trm.py")
"""The official model, in a clone."""
LR, DECAY = 1e-4, 1.0


@dataclass(frozen=True)
class TRMOrder:
    """What a process is told to build."""

    side: Literal["ours", "official", "products"]
    settings: dict[str, Any]
    rows: int
    threads: int = 1
    weights: str = ""
    reference: str = ""
    compile: bool = False
    product_seconds: float = 1.0
    """how long the products run per turn"""


def serve_order() -> None:
    """Be the side that the order on standard input names; see `process`."""
    serve(lambda order: _build(TRMOrder(**order)))


def _build(order: TRMOrder) -> _Side | _Products:
    import torch

    from inward.methods.trm.settings import TRMSettings

    torch.set_num_threads(order.threads)
    settings = TRMSettings(**order.settings)
    if order.side == "products":
        return _Products(settings, order)
    return {"ours": _Ours, "official": _Official}[order.side](settings, order)


def reference_config(settings: TRMSettings, rows: int) -> dict[str, Any]:
    """The official model's own configuration (flat) for these settings."""
    return {
        "batch_size": rows,
        "seq_len": settings.seq_len,
        "puzzle_emb_ndim": settings.identifier_width,
        "puzzle_emb_len": settings.prefix_len,
        "num_puzzle_identifiers": settings.num_identifiers,
        "vocab_size": settings.vocab_size,
        "H_cycles": settings.T,
        "L_cycles": settings.n,
        "H_layers": 0,
        "L_layers": settings.num_layers,
        "hidden_size": settings.hidden_size,
        "expansion": settings.expansion,
        "num_heads": settings.num_heads,
        "pos_encodings": settings.positions,
        "rms_norm_eps": settings.norm_eps,
        "rope_theta": settings.rope_theta,
        "halt_max_steps": settings.n_sup,
        "halt_exploration_prob": settings.exploration,
        "forward_dtype": settings.compute_dtype,
        "mlp_t": settings.mixer == "mlp",
        "no_ACT_continue": True,
    }


class _Side:
    """What ours and the official side share: data, optimizers, timing."""

    about = ""

    def __init__(self, settings: TRMSettings, order: TRMOrder):
        import torch

        self.rows = order.rows
        self.clock = clock(order.threads)
        g = torch.Generator().manual_seed(1)
        shape = (order.rows, settings.seq_len)
        inputs, labels = (
            torch.randint(1, settings.vocab_size, shape, generator=g) for _ in range(2)
        )
        self.batch = {"inputs": inputs, "labels": labels}
        self.carry: Any = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.flops = _flops(order)

    def do(self, word: str) -> dict[str, Any]:
        """Seconds of a step or a forward, or the outputs to compare."""
        import torch

        if word == "outputs":
            with torch.inference_mode():
                logits = self.logits()
            total = self.loss() / self.rows
            total.backward()
            squares = [float(g.double().square().sum()) for g in self.gradients()]
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.carry = None
            norm = sum(squares) ** 0.5
            return {
                "logits": logits.float().tolist(),
                "loss": float(total.detach()),
                "gradient_norm": norm,
            }
        began = self.clock()
        if word == "step":
            (self.loss() / self.rows).backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        else:
            assert word == "forward", word
            with torch.inference_mode():
                self.logits()
        return {"seconds": self.clock() - began}

    def logits(self) -> Tensor:
        """Of one deep recursion from the initial states."""
        raise NotImplementedError

    def loss(self) -> Tensor:
        """Of one training step, summed over the rows; the slots move on."""
        raise NotImplementedError

    def gradients(self) -> list[Tensor]:
        """Of the dense parameters."""
        raise NotImplementedError


def _flops(order: TRMOrder) -> dict[str, float]:
    """Of a step and a forward; backward is twice its forward."""
    from inward.methods.trm.reference import load_reference
    from inward.methods.trm.settings import TRMSettings

    settings = TRMSettings(**order.settings)
    model = load_reference(order.weights, reference_config(settings, order.rows))
    evaluation, read_out = model.flops()
    num, num_back = settings.T * (settings.n + 1), settings.n + 1
    return {
        "forward": order.rows * (num * evaluation + read_out),
        "step": order.rows * ((num + 2 * num_back) * evaluation + 3 * read_out),
    }


class _Ours(_Side):
    def __init__(self, settings: TRMSettings, order: TRMOrder):
        super().__init__(settings, order)
        from inward.methods.trm.reference import load_reference
        from inward.train.optim import build_optimizers
        from inward.train.settings import OptimSettings

        self.model = load_reference(order.weights, reference_config(settings, order.rows)).train()
        self.optimizers = build_optimizers(
            self.model,
            OptimSettings(
                name="adam_atan2",
                lr=LR,
                weight_decay=DECAY,
                sparse_lr=LR,
                sparse_weight_decay=DECAY,
            ),
        )
        self.step = 0
        if order.compile:
            self.model.network.compile()
            self.about = "torch.compile of the network f"

    def logits(self) -> Tensor:
        inputs = self.batch["inputs"]
        _, logits, _ = self.model.supervision_step(inputs, self.model.initial_state(*inputs.shape))
        return logits

    def loss(self) -> Tensor:
        from inward.common.draws import Draws

        draws = Draws(0, self.step, range(self.rows), self.rows)
        loss = self.model.loss(self.batch, self.carry, draws)
        self.carry, self.step = loss.state, self.step + 1
        return loss.total

    def gradients(self) -> list[Tensor]:
        from inward.train.optim import dense_parameters

        return [p.grad for p in dense_parameters(self.model).values() if p.grad is not None]


class _Official(_Side):
    def __init__(self, settings: TRMSettings, order: TRMOrder):
        super().__init__(settings, order)
        import torch
        from safetensors.torch import load_file

        from inward.train.optim import AdamATan2

        stood_in = _import_from(Path(order.reference))
        from models.losses import ACTLossHead  # pyright: ignore[reportMissingImports]
        from models.recursive_reasoning.trm import (  # pyright: ignore[reportMissingImports]
            TinyRecursiveReasoningModel_ACTV1,
        )
        from models.sparse_embedding import (  # pyright: ignore[reportMissingImports]
            CastedSparseEmbeddingSignSGD_Distributed,
        )

        torch.manual_seed(0)
        self.model = TinyRecursiveReasoningModel_ACTV1(reference_config(settings, order.rows))
        self.model.inner.load_state_dict(load_file(order.weights))
        self.head: Any = ACTLossHead(self.model, "stablemax_cross_entropy").train()
        self.batch["puzzle_identifiers"] = torch.zeros(order.rows, dtype=torch.int32)
        table = CastedSparseEmbeddingSignSGD_Distributed(
            self.model.puzzle_emb.buffers(), world_size=1, lr=LR, weight_decay=DECAY
        )
        dense = AdamATan2(self.model.parameters(), lr=LR, weight_decay=DECAY)
        self.optimizers = [table, dense]
        if order.compile:
            self.head = torch.compile(self.head)
            self.model.inner.compile()
        self.about = _about(Path(order.reference), stood_in, compiled=order.compile)

    def logits(self) -> Tensor:
        import torch

        self.model.eval()
        inner = self.model.inner
        everywhere = torch.ones(self.rows, dtype=torch.bool)
        carry = inner.reset_carry(everywhere, inner.empty_carry(self.rows))
        _, logits, _ = inner(carry, self.batch)
        self.head.train()
        return logits

    def loss(self) -> Tensor:
        if self.carry is None:
            self.carry = self.head.initial_carry(self.batch)
        self.carry, loss, *_ = self.head(carry=self.carry, batch=self.batch, return_keys=[])
        return loss

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]


def _import_from(clone: Path) -> list[str]:
    """Make the clone's modules importable; returns what had to be replaced by a stand-in."""
    sys.path.insert(0, str(clone))
    stand_ins = {"einops": {"rearrange": _unused}, "pydantic": {"BaseModel": _Record}}
    missing = [name for name in stand_ins if importlib.util.find_spec(name) is None]
    for name in missing:
        module = ModuleType(name)
        vars(module).update(stand_ins[name])
        sys.modules[name] = module
    return missing


def _unused(*_: Any, **__: Any) -> Any:
    """In place of einops.rearrange, which only the official attention layer calls."""
    raise RuntimeError("the official attention layer needs einops; install it")


class _Record:
    """In place of pydantic.BaseModel: the annotated fields from keywords or class defaults."""

    def __init__(self, **values: Any):
        for name in self.__annotations__:
            setattr(self, name, values[name] if name in values else getattr(type(self), name))


def _about(clone: Path, stood_in: list[str], *, compiled: bool) -> str:
    told = (
        f"{clone}, commit {commit_of(clone)}: TinyRecursiveReasoningModel_ACTV1 in ACTLossHead "
        "(stablemax_cross_entropy), CastedSparseEmbeddingSignSGD_Distributed, and in place of "
        "adam_atan2, which needs CUDA, the AdamATan2 of inward"
    )
    if compiled:
        told += "; torch.compile of the loss head, as its pretrain.py does"
    if stood_in:
        told += f"; stand-ins for {', '.join(stood_in)}, which this path only imports"
    return told


# --------------------------------------------------------------------------------------------------
# The products alone


Form = Callable[[], Any]
Forms = tuple[list[Form], list[Form], list[Form]]


class _Products:
    """The matrix products of f, each in the fastest layout found."""

    about = ""
    flops: dict[str, float] = {}  # noqa: RUF012 - told per answer

    def __init__(self, settings: TRMSettings, order: TRMOrder):
        import torch

        from inward.methods.trm.model import TRM

        with torch.random.fork_rng(devices=[]):
            network: Any = TRM(replace(settings, num_layers=1)).network
            block: Any = network.blocks[0]
        self.dtype = getattr(torch, settings.compute_dtype)
        self.least = order.product_seconds
        self.clock = clock(order.threads)
        self.counts = {"step": (settings.T * (settings.n + 1), settings.n + 1)}
        self.counts["forward"] = (self.counts["step"][0], 0)
        B, D, S = order.rows, settings.hidden_size, settings.prefix_len + settings.seq_len
        self.forward: list[Form] = []
        self.backward: list[Form] = []
        self.work = 0.0  # FLOPs of all forward products of one block
        for out, into in ((2 * block.mixer.width, S), (S, block.mixer.width)):
            x, y = self._new(B, into, D), self._new(B, out, D)
            turned = x.mT.reshape(B * D, into), y.mT.reshape(B * D, out)
            forms = left_forms(self._new(out, into), x, y, *turned, self._new(out, into))
            self._add(forms, 2.0 * B * D * out * into)
        for out, into in ((2 * block.mlp.width, D), (D, block.mlp.width)):
            weights = self._new(out, into), self._new(out, into)
            x, y = self._new(B * S, into), self._new(B * S, out)
            self._add(right_forms(*weights, x, y, part=4 * S), 2.0 * B * S * out * into)

    def do(self, word: str) -> dict[str, float]:
        """Seconds and FLOPs of one block's products, weighted as in that work."""
        num, num_back = self.counts[word]
        passes, forward, backward = 0, 0.0, 0.0
        while forward + backward < self.least:
            forward += self.seconds(self.forward)
            backward += self.seconds(self.backward) if num_back else 0.0
            passes += 1
        flops = self.work * (num + 2 * num_back)
        return {"seconds": (num * forward + num_back * backward) / passes, "flops": flops}

    def _add(self, forms: Forms, flops: float) -> None:
        """The fastest form of y = W x, of dx and of dW."""

        def least(form: Form) -> float:
            return min(self.seconds([form]) for _ in range(4))

        fastest = [min(kind, key=least) for kind in forms]
        self.forward.append(fastest[0])
        self.backward += fastest[1:]
        self.work += flops

    def seconds(self, forms: list[Form]) -> float:
        """How long they take, one after the other."""
        began = self.clock()
        for form in forms:
            form()
        return self.clock() - began

    def _new(self, *shape: int) -> Tensor:
        import torch

        return torch.randn(*shape).to(self.dtype)


def left_forms(
    W: Tensor, x: Tensor, y: Tensor, x_turned: Tensor, y_turned: Tensor, dW: Tensor
) -> Forms:
    """Ways to compute y = W x, x = W^T y and dW = y x^T along the sequence, in place.

    W, dW: (out, into); x: (B, into, D); y: (B, out, D); turned: (B * D, into) and (B * D, out), on
    which the third way works: from the right.
    """
    import torch

    each = list(zip(x, y, strict=True))
    return (
        [
            lambda: torch.bmm(W.expand(len(x), -1, -1), x, out=y),
            lambda: [torch.mm(W, a, out=b) for a, b in each],
            lambda: torch.mm(x_turned, W.T, out=y_turned),
        ],
        [
            lambda: torch.bmm(W.T.expand(len(x), -1, -1), y, out=x),
            lambda: [torch.mm(W.T, b, out=a) for a, b in each],
            lambda: torch.mm(y_turned, W, out=x_turned),
        ],
        [
            lambda: dW.addbmm_(y, x.mT, beta=0),
            lambda: dW.T.addbmm_(x, y.mT, beta=0),
            lambda: torch.mm(y_turned.T, x_turned, out=dW),
        ],
    )


def right_forms(W: Tensor, dW: Tensor, x: Tensor, y: Tensor, *, part: int) -> Forms:
    """The same for y = x W^T with x (num, into), y (num, out): all at once or part by part."""
    import torch

    parts = list(zip(x.split(part), y.split(part), strict=True))
    return (
        [lambda: torch.mm(x, W.T, out=y), lambda: [torch.mm(a, W.T, out=b) for a, b in parts]],
        [lambda: torch.mm(y, W, out=x), lambda: [torch.mm(b, W, out=a) for a, b in parts]],
        [
            lambda: torch.mm(y.T, x, out=dW),
            lambda: [dW.addmm_(b.T, a, beta=int(i > 0)) for i, (a, b) in enumerate(parts)],
        ],
    )
