"""Resume state: everything that decides the next step, as safetensors and JSON, never pickle.

    <run>/states/step-000000120/
        state.safetensors       raw weights, average, optimizer states
        state.json              step, identity of the run, optimizer scalars, the loop's record
        rank-00000.safetensors  what differs between processes: method state, torch generators
        rank-00000.json         generators of numpy and Python
        manifest.json           length and SHA-256 of each of these, whatever they are

A killed run goes on with the same bits, so nothing may be left out: the data position is the step
(sources are pure functions of it), and `dropout` draws from global generators, which are here too.
A state is written to a hidden folder, flushed, and renamed; what a kill leaves half-written or
half-deleted is a hidden folder, which the next start removes. What a disk or a hand changed later
does not fit the manifest; the message then names the state before it.
"""

from __future__ import annotations

import errno
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from inward.common.files import (
    MANIFEST,
    manifest_fault,
    publish,
    read_object,
    remove_folder,
    write_json,
    write_manifest,
    write_tensors,
)
from inward.common.weights import complain
from inward.train.ema import EMA

FORMAT = 1
_SLICE_BYTES = 1 << 26
"""Tensors larger than this are read in slices: a table of identifiers has gigabytes."""


# --- folders and files --------------------------------------------------------------------------


# --- random generators --------------------------------------------------------------------------


@dataclass
class Generators:
    """The global generators at one moment: torch (CPU and device), numpy, Python."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]

    @classmethod
    def capture(cls, device: torch.device) -> Generators:
        """Read them all; costs microseconds."""
        tensors = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            tensors[device.type] = torch.get_device_module(device).get_rng_state()
        numbers: Any = np.random.get_state(legacy=False)
        version, words, gauss = random.getstate()
        tensors["numpy"] = torch.from_numpy(numbers["state"]["key"].astype(np.int64))
        tensors["python"] = torch.tensor(words)
        scalars = {
            "numpy": [numbers["state"]["pos"], numbers["has_gauss"], numbers["gauss"]],
            "python": [version, gauss],
        }
        return cls(tensors, scalars)

    def restore(self, device: torch.device) -> None:
        """Put them back; warns if the state comes from a machine with another kind of device."""
        torch.set_rng_state(self.tensors["cpu"])
        if device.type != "cpu" and device.type in self.tensors:
            torch.get_device_module(device).set_rng_state(self.tensors[device.type])
        elif device.type != "cpu":
            warnings.warn(f"no {device.type} generator in the state: dropout differs", stacklevel=2)
        key = self.tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, *self.scalars["numpy"]))
        version, gauss = self.scalars["python"]
        random.setstate((version, tuple(self.tensors["python"].tolist()), gauss))


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside the block leaves no trace outside it."""
    before = Generators.capture(device)
    try:
        yield
    finally:
        before.restore(device)


# --- the state ----------------------------------------------------------------------------------


@dataclass
class TrainState:
    """Live objects of a run. `carries` holds the method state of each micro-batch."""

    model: nn.Module
    optimizers: list[Optimizer]
    ema: EMA | None
    carries: list[dict[str, Tensor] | None]
    step: int = 0
    """Steps done, which is also the number of the next batch."""
    record: dict[str, Any] = field(default_factory=dict)
    """JSON values that the loop keeps: best metric, open log window, seconds so far."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that are the same on every process, under their names in the file."""
        found = self.weights()
        for name, state in self._optimizer_states():
            found.update({f"{name}{k}": v for k, v in state.items() if isinstance(v, Tensor)})
        return found

    def weights(self) -> dict[str, Tensor]:
        """Raw weights and persistent buffers (a tied weight once), and the average."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                found[f"model.{name}"] = tensor.detach()
                seen.add(id(tensor))
        if self.ema is not None:
            found.update({f"ema.{name}": value for name, value in self.ema.shadow.items()})
        return found

    def scalars(self) -> dict[str, Any]:
        """Optimizer values that are no tensors."""
        return {
            f"{name}{key}": value
            for name, state in self._optimizer_states()
            for key, value in state.items()
            if value is not None and not isinstance(value, Tensor)
        }

    def _optimizer_states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, (optimizer, param) in self.optimized().items():
            yield name, optimizer.state.get(param, {})

    def optimized(self) -> dict[str, tuple[Optimizer, Tensor]]:
        """Prefix of the state in the file -> optimizer and parameter."""
        return {
            f"optim.{number}.{name}/": (optimizer, param)
            for number, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
        }


class OtherProcessError(OSError):
    """One of several processes could not write its part of a state; raised on all of them.

    process: its number, from 0. of: how many there are.
    """

    def __init__(self, number: int, why: str, process: int, of: int) -> None:
        super().__init__(number, why)
        self.process, self.of = process, of


@dataclass
class StateFolder:
    """The states of one run on disk.

    identity: JSON values that must be equal for a state to fit (nested dicts); `compare` in the
        loop decides what goes in. barrier: waits for all processes.
    """

    root: Path
    identity: dict[str, Any]
    keep: int = 2
    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None
    agree: Callable[[str], str] = lambda fault: fault
    """The first fault that any process names, on all of them; "" if there is none."""

    def clean(self) -> None:
        """Remove what a killed process left half-written or half-deleted."""
        if self.rank == 0 and self.root.exists():
            for folder in self.root.glob(".*-step-*"):
                shutil.rmtree(folder)
        self.barrier()

    def steps(self) -> list[int]:
        """Steps with a complete state, ascending."""
        if not self.root.exists():
            return []
        names = [p.name.removeprefix("step-") for p in self.root.glob("step-*") if p.is_dir()]
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """Folder of the state at `step`."""
        return self.root / f"step-{step:09d}"

    def save(self, state: TrainState, generators: Generators) -> Path:
        """Write the state of all processes; every process calls this at the same step."""
        target = self.path(state.step)
        hidden = target.with_name(f".new-{target.name}")
        try:
            self._write(hidden, target, state, generators)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)  # on a full disk its bytes are needed
            raise
        return target

    def _write(self, hidden: Path, target: Path, state: TrainState, generators: Generators) -> None:
        def begin() -> None:
            if self.rank == 0:
                shutil.rmtree(hidden, ignore_errors=True)
                hidden.mkdir(parents=True)

        def write() -> None:
            self._write_rank(hidden, state, generators)
            if self.rank == 0:
                self._write_shared(hidden, state)

        def end() -> None:
            if self.rank == 0:
                write_manifest(hidden)
                publish(hidden, target)
                for step in self.steps()[: -self.keep]:
                    remove_folder(self.path(step))

        for part in (begin, write, end):
            self._together(part)

    def _together(self, part: Callable[[], None]) -> None:
        """Do this process's part; go on when all have done theirs.

        Raises:
            OtherProcessError: on all of them, if one could not.
        """
        own: Exception | None = None
        try:
            part()
        except Exception as error:  # the others wait, whatever it is
            if self.world_size == 1:
                raise
            own = error
        fault = ""
        if own is not None:
            system = isinstance(own, OSError) and own.errno is not None
            number, why = (own.errno, own.strerror) if system else (errno.EIO, repr(own))  # type: ignore[attr-defined]
            fault = f"{number} {self.rank} {why}"
        if fault := self.agree(fault):
            number, rank, why = fault.split(" ", 2)
            raise OtherProcessError(int(number), why, int(rank), self.world_size) from own

    def _write_shared(self, folder: Path, state: TrainState) -> None:
        write_tensors(folder / "state.safetensors", state.tensors())
        content = {
            "format": FORMAT,
            "step": state.step,
            "world_size": self.world_size,
            "micro_batches": len(state.carries),
            "ema_updates": state.ema.num_updates if state.ema else 0,
            "identity": self.identity,
            "record": state.record,
            "optimizer_scalars": state.scalars(),
            "optimizer_tensors": sorted(state.tensors().keys() - state.weights().keys()),
            "manifest": MANIFEST,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        write_json(folder / "state.json", content)

    def _write_rank(self, folder: Path, state: TrainState, generators: Generators) -> None:
        tensors = {f"rng.{name}": value for name, value in generators.tensors.items()}
        for number, carry in enumerate(state.carries):
            tensors |= {f"carry.{number}.{name}": value for name, value in (carry or {}).items()}
        carried = [carry is not None for carry in state.carries]
        stem = f"rank-{self.rank:05d}"
        write_tensors(folder / f"{stem}.safetensors", tensors)
        write_json(folder / f"{stem}.json", {"rng": generators.scalars, "carried": carried})

    def load(
        self,
        state: TrainState,
        step: int,
        device: torch.device,
        content: dict[str, Any] | None = None,
    ) -> Generators:
        """Read the state of `step` into the live objects; returns the generators of that moment.

        content: what `content` gave, if it was asked before (it reads every byte).

        Everything is checked before anything is changed.

        Raises:
            ValueError: the state belongs to another run (each difference is listed), was made by
                another number of processes or micro-batches, or its files are damaged.
        """
        folder = self.path(step)
        content = self.content(step) if content is None else content
        self._check(content, state, folder)
        own = _read_json(folder / f"rank-{self.rank:05d}.json", self._remedy(step))
        with self._open_state(step, "state") as shared:
            self._check_names(shared, state, folder, content)
        with self._open_state(step, f"rank-{self.rank:05d}") as rank:
            _place(folder / "state.safetensors", state, content)
            state.carries = _carries(rank, own["carried"], device)
            names = [n for n in rank.keys() if n.startswith("rng.")]  # noqa: SIM118 (no mapping)
            generators = {n.removeprefix("rng."): rank.get_tensor(n).clone() for n in names}
        return Generators(generators, own["rng"])

    def content(self, step: int) -> dict[str, Any]:
        """What state.json of this step says, after all files were held against the manifest.

        Raises:
            ValueError: a file is damaged or missing, or belongs to another step.
        """
        folder, remedy = self.path(step), self._remedy(step)
        if fault := self.agree(self._fault(folder) if self.rank == 0 else ""):
            raise ValueError(f"{fault}; {remedy}")
        content = _read_json(folder / "state.json", remedy)
        if content.get("format") != FORMAT:
            raise ValueError(f"{folder} has format {content.get('format')}, this version: {FORMAT}")
        if content.get("step") != step:
            raise ValueError(
                f"{folder / 'state.json'} is the state of step {content.get('step')}, its folder's "
                f"name says {step}; give the folder its right name, or {remedy}"
            )
        return content

    def _fault(self, folder: Path) -> str:
        if not (folder / MANIFEST).exists():
            try:  # a state from before there were manifests does not name one
                named = read_object(folder / "state.json").get("manifest")
            except (OSError, ValueError) as error:
                return f"cannot read {folder / 'state.json'} ({error})"
            return f"{folder / MANIFEST} is missing" if named else ""
        return manifest_fault(folder)

    def _remedy(self, step: int) -> str:
        """How to go on without the state of `step`."""
        older = [other for other in self.steps() if other < step]
        after = f"to go on from {self.path(older[-1])}" if older else "to begin at step 0 again"
        only = "" if older else " (there is no older state)"
        return f"delete {self.path(step)} {after}{only}"

    def _open_state(self, step: int, stem: str) -> Any:
        return _open(self.path(step) / f"{stem}.safetensors", self._remedy(step))

    def _check(self, content: dict[str, Any], state: TrainState, folder: Path) -> None:
        told = differences(content["identity"], self.identity)
        if told:
            raise ValueError(
                f"{folder} belongs to a run with other settings; restore them or train into "
                f"another folder. {'; '.join(told)}"
            )
        for name, now in (("world_size", self.world_size), ("micro_batches", len(state.carries))):
            if content[name] != now:
                raise ValueError(
                    f"{folder} was written with {name} {content[name]}, this run has {now}: method "
                    "state and generators cannot be divided anew. Start it as it was started"
                )
        if content["threads"] != torch.get_num_threads():
            warnings.warn(
                f"the run had {content['threads']} threads, now {torch.get_num_threads()}: "
                "losses will not agree to the last bit",
                stacklevel=2,
            )

    def _check_names(
        self, file: Any, state: TrainState, folder: Path, content: dict[str, Any]
    ) -> None:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        expected = {name: tuple(value.shape) for name, value in state.weights().items()}
        optimized = {name: tuple(p.shape) for name, (_, p) in state.optimized().items()}
        unexpected, wrong = [], []
        for name, shape in found.items():
            # Optimizers make their state at the first step: any tensor of a known parameter fits
            # if it is a scalar or shaped like the parameter.
            prefix = name.rpartition("/")[0] + "/"
            want = () if shape == () and prefix in optimized else optimized.get(prefix)
            want = expected.get(name, want)
            if want is None:
                unexpected.append(name)
            elif want != shape:
                wrong.append(f"{name} (saved {shape}, needed {want})")
        needed = expected.keys() | content.get("optimizer_tensors", [])
        complain(folder, sorted(needed - found.keys()), unexpected, wrong)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of what two nested dicts do not share: missing, unexpected, different."""
    old, new = flatten(saved), flatten(now)
    both = sorted(old.keys() & new.keys())
    parts = [
        ("missing", sorted(new.keys() - old.keys())),
        ("unexpected", sorted(old.keys() - new.keys())),
        ("different", [f"{n} (saved {old[n]}, now {new[n]})" for n in both if old[n] != new[n]]),
    ]
    return [f"{title}: {', '.join(names)}" for title, names in parts if names]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}); {remedy}") from error


@contextmanager
def _open(path: Path, remedy: str = "delete its folder") -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path} ({error}); {remedy}") from error


@torch.no_grad()
def _place(path: Path, state: TrainState, content: dict[str, Any]) -> None:
    with _open(path) as file:
        names = list(file.keys())
    for name, tensor in state.weights().items():
        _copy(path, name, tensor)
    for prefix, (optimizer, param) in state.optimized().items():
        values: dict[str, Any] = {}
        for name in names:
            if name.startswith(prefix):
                values[name.removeprefix(prefix)] = _load_beside(path, name, param)
        for name, value in content["optimizer_scalars"].items():
            if name.startswith(prefix):
                values[name.removeprefix(prefix)] = value
        optimizer.state.pop(param, None)
        if values:
            optimizer.state[param] = values
    if state.ema is not None:
        state.ema.num_updates = content["ema_updates"]
    state.step = content["step"]
    state.record = content["record"]


def _load_beside(path: Path, name: str, param: Tensor) -> Tensor:
    """A new tensor for optimizer state: on the parameter's device, scalars (counts) on CPU."""
    with _open(path) as file:
        saved = file.get_slice(name)
        if not saved.get_shape():
            return file.get_tensor(name).clone()
        into = torch.empty_like(param, dtype=saved[:0].dtype)
    _copy(path, name, into)
    return into


def _copy(path: Path, name: str, into: Tensor) -> None:
    """Fill `into` from the file, which is opened anew for every tensor and every large slice.

    What was read of a mapped file counts as memory of the process until the file is closed; a
    table of identifiers would be there twice.
    """
    size = into.numel() * into.element_size()
    if into.ndim == 0 or size <= _SLICE_BYTES:
        with _open(path) as file:
            into.copy_(file.get_tensor(name))
        return
    rows = max(1, _SLICE_BYTES * into.shape[0] // size)
    for first in range(0, into.shape[0], rows):
        with _open(path) as file:
            into[first : first + rows].copy_(file.get_slice(name)[first : first + rows])


def _carries(
    file: Any, carried: list[bool], device: torch.device
) -> list[dict[str, Tensor] | None]:
    carries: list[dict[str, Tensor] | None] = []
    for number, present in enumerate(carried):
        prefix = f"carry.{number}."
        names = [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118 (no mapping)
        # Cloned, because kernels may add in another order on memory that torch did not align.
        read = {n.removeprefix(prefix): file.get_tensor(n).clone().to(device) for n in names}
        carries.append(read if present else None)
    return carries
