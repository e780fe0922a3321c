"""Optimizers in plain torch: AdamATan2, ELLISAdam, sparse sign descent, and Muon over the parts of
a matrix.

AdamATan2 and the sparse rule are those TRM was trained with (released code; the paper's text says
AdamW), ELLISAdam is Huginn's. Updates of many tensors are batched by `torch._foreach_*`.

Two kinds of parameters are told apart everywhere in training: *sparse* ones (the weight of an
`nn.Embedding(sparse=True)`, such as a table of puzzle identifiers) and *dense* ones (all others).
Only dense ones are clipped, averaged (EMA) and reduced by DistributedDataParallel; sparse ones are
summed over processes by their optimizer, which moves the touched rows only.
"""

# torch's stubs hide the foreach functions, its documentation of optimizers does not.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from inward.train.settings import OptimSettings
from inward.train.shards import Shards, held, whole


@runtime_checkable
class ChoosesMuon(Protocol):
    """A model that says itself which of its parameters are hidden matrices."""

    def muon_parameters(self) -> Iterable[str] | Mapping[str, tuple[int, ...]]:
        """Names, or name -> number of rows of each part (() takes the matrix as a whole)."""
        ...


# --- which parameters ---------------------------------------------------------------------------


def sparse_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable weights of the model's sparse embeddings, by name."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = {id(m.weight) for m in model.modules() if isinstance(m, kinds) and m.sparse}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in found}


def dense_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All other trainable parameters, by name (a tied weight once)."""
    sparse = sparse_parameters(model)
    return {n: p for n, p in model.named_parameters() if p.requires_grad and n not in sparse}


def hidden_matrices(model: nn.Module, *, split: bool = True) -> dict[str, tuple[int, ...]]:
    """The default choice for Muon: name -> rows of its parts (empty: the whole matrix).

    Hidden matrices are the 2-D parameters that belong to no `nn.Embedding` (nor are tied to one)
    and have neither "head" nor "embed" in their name. With `split`, a "gate_up" matrix is taken
    as two equal parts and a "qkv" matrix with three times as many rows as columns as three.
    Grouped-query qkv has unequal parts, which a name cannot tell: such a model should have a
    method `muon_parameters()`, whose answer is used instead of this one.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    chosen: dict[str, tuple[int, ...]] = {}
    for name, param in dense_parameters(model).items():
        outer = any(word in name.lower() for word in ("head", "embed"))
        if param.ndim != 2 or outer or id(param) in tables:
            continue
        rows, columns = param.shape
        chosen[name] = ()
        if split and "gate_up" in name and rows % 2 == 0:
            chosen[name] = (rows // 2, rows // 2)
        elif split and "qkv" in name and rows == 3 * columns:
            chosen[name] = (columns, columns, columns)
    return chosen


# --- AdamATan2 ----------------------------------------------------------------------------------


class AdamATan2(Optimizer):
    r"""Adam whose division is an arctangent: no epsilon, and steps that cannot blow up.

    With gradient g, rate lr and decay wd, at step t (from 1):

        theta <- theta * (1 - lr * wd)
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        theta <- theta - lr / (1 - beta1^t) * atan2(m, sqrt(v) / sqrt(1 - beta2^t))

    The correction of m stands outside the arctangent, as in the kernel TRM was trained with
    (imoneoi/adam-atan2); other packages of this name put it inside and scale the result.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ) -> None:
        """Accepts parameters, (name, parameter) pairs or groups; lr may be 0 (set it each step)."""
        _check_rates(lr, weight_decay, betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                states = [_adam_state(self, p) for p in params]
                _adam_atan2(params, states, group["lr"], group["betas"], group["weight_decay"])
        return loss


def _adam_state(optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
    """Count, mean and mean square of a parameter; zeros before its first gradient."""
    assert param.grad is not None
    if param.grad.is_sparse:
        kind = type(optimizer).__name__
        raise ValueError(f"{kind} got a sparse gradient; give such weights to SparseSignSGD")
    state = optimizer.state[param]
    if not state:
        # The count is a tensor so that it is saved and loaded like the rest of the state.
        state["step"] = torch.zeros((), dtype=torch.int64)
        state["exp_avg"] = torch.zeros_like(param)
        state["exp_avg_sq"] = torch.zeros_like(param)
    return state


def _adam_atan2(
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    beta1, beta2 = betas
    grads = [p.grad for p in params if p.grad is not None]
    means = [s["exp_avg"] for s in states]
    squares = [s["exp_avg_sq"] for s in states]
    for state in states:
        state["step"] += 1
    counts = [int(s["step"]) for s in states]

    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    updates = torch._foreach_sqrt(squares)
    torch._foreach_div_(updates, [math.sqrt(1 - beta2**t) for t in counts])
    for update, mean in zip(updates, means, strict=True):
        torch.atan2(mean, update, out=update)  # torch has no foreach form of it
    torch._foreach_mul_(updates, [-lr / (1 - beta1**t) for t in counts])
    torch._foreach_add_(params, list(updates))


# --- ELLISAdam ----------------------------------------------------------------------------------


class ELLISAdam(Optimizer):
    r"""Huginn's optimizer: AdamATan2 with update clipping and a running start (notes of the paper's
    code, recpre/optim.py at 59e0b69).

    With gradient g, rate lr, base rate lr_0 and decay wd, at step t (from 1):

        m <- g and v <- g^2 if t = 1; then
        m <- beta1 * m + (1 - beta1) * g
        v <- max(beta2 * v + (1 - beta2) * g^2, eps^2)
        rho = sqrt(mean(g^2 / v))                         over the tensor (StableAdamW, Adafactor)
        theta <- theta * (1 - (lr / lr_0) * wd)
        theta <- theta - lr / max(1, rho) / (1 - beta1^t) * atan2(m, sqrt(v) / sqrt(1 - beta2^t))

    Unusual: the running start *and* the bias correction are applied, so that the first step is
    about 1 / (1 - beta1) times as long as the later ones (the paper skips it; our schedules start
    with lr / warmup, which does the same); eps only bounds v, and the decay does not depend on the
    base rate. lr_0 is the group's "initial_lr", or the `lr` it was made with.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 4e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 4e-5,
        eps: float = 1e-6,
    ) -> None:
        """Accepts parameters, (name, parameter) pairs or groups."""
        _check_rates(lr, weight_decay, betas)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, defaults)
        self.means: Callable[[list[Tensor]], list[Tensor]] = _means
        """Of whole tensors, given what this process holds of them (`Shards.means`)."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group's rate becomes its base rate unless it names one."""
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("initial_lr", self.param_groups[-1]["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = _call(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                _ellis_adam(params, [_adam_state(self, p) for p in params], group, self.means)
        return loss


def _means(values: list[Tensor]) -> list[Tensor]:
    return [value.mean() for value in values]


def _ellis_adam(
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    group: dict[str, Any],
    means_of: Callable[[list[Tensor]], list[Tensor]],
) -> None:
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    share = lr / group["initial_lr"] if group["initial_lr"] else 0.0
    grads = [p.grad for p in params if p.grad is not None]
    means = [s["exp_avg"] for s in states]
    squares = [s["exp_avg_sq"] for s in states]
    for state, grad in zip(states, grads, strict=True):
        if not state["step"]:
            state["exp_avg"].copy_(grad)
            torch.mul(grad, grad, out=state["exp_avg_sq"])
        state["step"] += 1
    counts = [int(s["step"]) for s in states]

    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    torch._foreach_clamp_min_(squares, eps**2)
    ratios = [g.square().div_(v) for g, v in zip(grads, squares, strict=True)]
    rho = [mean.sqrt() for mean in means_of(ratios)]
    updates = torch._foreach_sqrt(squares)
    torch._foreach_div_(updates, [math.sqrt(1 - beta2**t) for t in counts])
    for update, mean in zip(updates, means, strict=True):
        torch.atan2(mean, update, out=update)  # torch has no foreach form of it
    # One tensor per factor: a number would wait for the device to know rho.
    factors = [r.clamp(min=1.0).reciprocal() for r in rho]
    torch._foreach_mul_(updates, factors)
    torch._foreach_mul_(updates, [-lr / (1 - beta1**t) for t in counts])
    torch._foreach_mul_(params, 1 - share * group["weight_decay"])
    torch._foreach_add_(params, list(updates))


# --- sparse sign descent ------------------------------------------------------------------------


class SparseSignSGD(Optimizer):
    """Sign descent on the rows of an embedding that this step touched, and on no others.

    With g the sum of the gradients of all rows of equal id, over the batch and all processes:

        row <- row * (1 - lr * wd) - lr * sign(g)

    A touched row is decayed even where g is 0; an untouched row keeps its bytes. There is no
    state, and memory is needed for the touched rows only. Under torch.distributed every process
    must call `step`, with or without touched rows: ids and rows are gathered here, so the
    parameter must be kept out of DistributedDataParallel (the training loop does that).
    """

    def __init__(self, params: ParamsT, lr: float = 1e-4, *, weight_decay: float = 0.1) -> None:
        """Accepts weights of `nn.Embedding(sparse=True)`; lr may be 0."""
        _check_rates(lr, weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of the touched rows.

        Raises ValueError if a gradient is dense: the embedding was made without `sparse=True`.
        """
        loss = _call(closure)
        for group in self.param_groups:
            for param in group["params"]:
                ids, summed = _touched_rows(param)
                if ids.numel():
                    rows = param.index_select(0, ids)
                    rows.mul_(1 - group["lr"] * group["weight_decay"])
                    rows.add_(summed.sign_(), alpha=-group["lr"])
                    param.index_copy_(0, ids, rows)
        return loss


def _touched_rows(param: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids (n,) and summed gradient rows (n, *row) over all processes."""
    if param.grad is None:
        ids = torch.empty(0, dtype=torch.int64, device=param.device)
        rows = param.new_empty((0, *param.shape[1:]))
    elif not param.grad.is_sparse:
        raise ValueError("SparseSignSGD got a dense gradient; use nn.Embedding(..., sparse=True)")
    else:
        grad = param.grad.coalesce()  # sums equal ids, so that fewer rows travel
        ids, rows = grad.indices()[0], grad.values()
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return ids, rows
    ids, rows = _gather(ids, rows)
    sizes = param.shape
    # Said outright, because torch warns when nothing is said: ids come from gradients, so they fit.
    total = torch.sparse_coo_tensor(ids[None], rows, sizes, check_invariants=False).coalesce()
    return total.indices()[0], total.values()


def _gather(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate what all processes hold, in rank order."""
    world = dist.get_world_size()
    count = torch.tensor([ids.numel()], device=ids.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]

    def gather(own: Tensor) -> Tensor:
        # Backends want equal shapes, so shorter parts are padded and cut again.
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: own.shape[0]] = own
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    return gather(ids), gather(rows)


# --- Muon over parts ----------------------------------------------------------------------------


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` that can treat a fused matrix as several.

    Orthogonalising q, k and v together ties the sizes of their updates to one another. Here every
    part is a view of its rows in the parameter's own memory, and torch's optimizer works on views;
    that costs nothing. The size of an update is matched to AdamW's ("match_rms_adamw").
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        parts: Mapping[str, tuple[int, ...]],
        lr: float,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        """Take `params` (2-D) apart by the row counts in `parts`; missing or (): keep whole.

        Raises ValueError if the rows of the parts do not add up to those of the matrix.
        """
        self._views: list[tuple[Tensor, Tensor, int]] = []
        named: list[tuple[str, Tensor]] = []
        for name, param in params.items():
            for first, last in _row_spans(name, param, parts.get(name, ())):
                view = param.detach()[first:last]
                self._views.append((param, view, first))
                named.append((f"{name}[{first}:{last}]", view))
        super().__init__(
            named or [{"params": [], "param_names": []}],  # a process that owns no matrix
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; the gradients are read from the parameters."""
        loss = _call(closure)
        for param, view, first in self._views:
            same = view.untyped_storage().data_ptr() == param.untyped_storage().data_ptr()
            assert same, "a parameter moved after its optimizer was built"
            view.grad = None if param.grad is None else param.grad[first : first + len(view)]
        super().step()
        for _, view, _ in self._views:
            view.grad = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the parameters (the views hold none between steps)."""
        for param, _, _ in self._views:
            if set_to_none:
                param.grad = None
            elif param.grad is not None:
                param.grad.zero_()


def _row_spans(name: str, param: Tensor, rows: tuple[int, ...]) -> list[tuple[int, int]]:
    if param.ndim != 2:
        raise ValueError(f"Muon takes matrices, but {name} has shape {tuple(param.shape)}")
    rows = rows or (param.shape[0],)
    if sum(rows) != param.shape[0] or min(rows) < 1:
        raise ValueError(f"the parts {rows} of {name} must add up to its {param.shape[0]} rows")
    ends = [sum(rows[: i + 1]) for i in range(len(rows))]
    return [(end - size, end) for end, size in zip(ends, rows, strict=True)]


class MuonOfShards(Muon):
    """Muon where the matrices are cut: each belongs to one process, in turn.

    Its owner gathers weight and gradient, keeps the momentum, and does what Muon does with a whole
    matrix, so that equal gradients give equal bits; then everybody takes their rows of the result.
    """

    def __init__(
        self, shards: Shards, parts: Mapping[str, tuple[int, ...]], lr: float, **options: Any
    ) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        self._shards = shards
        self._owners = {name: number % world for number, name in enumerate(parts)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the parts of all matrices, whoever owns them."""
        for name, sizes in parts.items():
            rows, columns = shards.params[name].shape
            first = 0
            for size in sizes or (rows,):
                self.shapes[f"{name}[{first}:{first + size}]"] = (size, columns)
                first += size
        self._own = {
            name: shards.rows[name].new_empty(shards.params[name].shape)
            for name, owner in self._owners.items()
            if owner == rank
        }
        super().__init__(self._own, {name: parts[name] for name in self._own}, lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; every process calls it."""
        assert closure is None, "a closure cannot be called by the owners alone"
        for name in self._owners:
            param = self._shards.params[name]
            if param.grad is None:
                continue
            weight, grad = whole(param), whole(param.grad)
            if name in self._own:
                self._own[name].copy_(weight)
                self._own[name].grad = grad
        super().step()
        for name, owner in self._owners.items():
            param = self._shards.params[name]
            if param.grad is None:
                continue
            own = held(param)
            new = self._own[name] if name in self._own else own.tensor.new_empty(param.shape)
            dist.broadcast(new, owner)
            own.tensor.copy_(new[own.first : own.first + len(own.tensor)])
        for matrix in self._own.values():
            matrix.grad = None


# --- from settings to optimizers ----------------------------------------------------------------


def build_optimizers(
    model: nn.Module, settings: OptimSettings, shards: Shards | None = None
) -> list[Optimizer]:
    """Optimizers for all trainable parameters; each group keeps its base rate in "initial_lr".

    shards: what this process holds of the dense ones, if the model is sharded.

    Raises ValueError if Muon is asked for and no parameter suits it, or if a model names
    parameters for Muon that it does not have.
    """
    dense: dict[str, Tensor] = dict(shards.rows) if shards else {**dense_parameters(model)}
    optimizers: list[Optimizer] = []
    name = settings.name
    if name == "muon":
        parts = _muon_parts(model, split=settings.muon_split)
        matrices = {n: dense.pop(n) for n in parts}
        lr = settings.lr if settings.muon_lr is None else settings.muon_lr
        more = {"weight_decay": settings.weight_decay, "momentum": settings.muon_momentum}
        if shards is not None and shards.cut:
            optimizers.append(MuonOfShards(shards, parts, lr, **more))
        else:
            optimizers.append(Muon(matrices, parts, lr, **more))
        name = settings.muon_rest
    if dense:
        kinds = {"adam_atan2": AdamATan2, "ellis_adam": ELLISAdam, "adamw": torch.optim.AdamW}
        kind = kinds[name]
        groups = _decay_groups(dense, settings)
        optimizers.append(kind(groups, lr=settings.lr, betas=settings.betas))
        if shards is not None and shards.cut and isinstance(optimizers[-1], ELLISAdam):
            optimizers[-1].means = shards.means
    sparse = sparse_parameters(model)
    if sparse:
        decay = settings.sparse_weight_decay
        optimizers.append(
            SparseSignSGD(list(sparse.items()), settings.sparse_lr, weight_decay=decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _muon_parts(model: nn.Module, *, split: bool) -> dict[str, tuple[int, ...]]:
    if isinstance(model, ChoosesMuon):
        chosen = model.muon_parameters()
        parts = dict(chosen) if isinstance(chosen, Mapping) and split else dict.fromkeys(chosen, ())
    else:
        parts = hidden_matrices(model, split=split)
    unknown = sorted(set(parts) - set(dense_parameters(model)))
    if unknown:
        raise ValueError(f"muon_parameters() names no trainable dense parameter: {unknown}")
    if not parts:
        raise ValueError("the model has no hidden matrix for Muon; use adam_atan2 or adamw")
    return parts


def _decay_groups(dense: dict[str, Tensor], settings: OptimSettings) -> list[dict[str, Any]]:
    if settings.decay_vectors:
        return [{"params": list(dense.items()), "weight_decay": settings.weight_decay}]
    # A bias is a vector whatever its shape (Huginn's bias on q and k has one row per head).
    vectors = [(n, p) for n, p in dense.items() if p.ndim < 2 or n.endswith("bias")]
    matrices = [(n, p) for n, p in dense.items() if n not in dict(vectors)]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _check_rates(lr: float, weight_decay: float, betas: tuple[float, float] = (0.0, 0.0)) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, but must be 0 or more and finite")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}, but must be in [0, 1)")


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
