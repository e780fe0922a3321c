"""Resume state: everything that decides the next step, as safetensors and JSON, never pickle.

    <run>/states/step-000000120/
        state.safetensors       raw weights, average, optimizer states (one process, or ddp)
        state-00000.safetensors ... of each process that holds rows of a sharded model
        state.json              step, identity of the run, optimizer scalars, the loop's record
        rank-00000.safetensors  what differs between processes: method state, torch generators
        rank-00000.json         which rows these are; generators of numpy and Python
        manifest.json           length and SHA-256 of each of these, whatever they are

A killed run goes on with the same bits, so nothing may be left out: the data position is the step
(sources are pure functions of it), and `dropout` draws from global generators, which are here too.

Any number of processes, sharded or not, goes on with it: tensors are found by their rows, and so is
method state, whose rows are those of the global batch. Only global generators belong to a process;
another number of them draws dropout anew.

The files are what torch.distributed.checkpoint's HuggingFaceStorageReader reads (the header says
where a part begins; numbers have shape (1,)). We write and read them ourselves, because its writer
builds the bytes of a process's whole share in memory before it writes them, and its reader keeps
a file mapped until all of it was read: a table of identifiers would be there twice.
A state is written to a hidden folder, flushed, and renamed; what a kill leaves half-written or
half-deleted is a hidden folder, which the next start removes. What a disk or a hand changed later
does not fit the manifest; the message then names the state before it.
"""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inward.common.files import (
    MANIFEST,
    flush,
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
from inward.train.generators import Generators
from inward.train.optim import MuonOfShards
from inward.train.parts import (
    FilePart,
    beginning,
    beside,
    fill,
    header,
    number_of,
    parts_of,
    whole_shape,
)
from inward.train.rows import Carry, Place, carries_of, saved_rows
from inward.train.shards import Held, held

FORMAT = 2
READ = (1, 2)
"""1: of one process, or of ddp, without a word about rows"""


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
    rows: list[range] = field(default_factory=list)
    """Rows of the global batch that each micro-batch owns; empty: not known."""

    def tensors(self) -> dict[str, Tensor]:
        """What this process holds of all tensors, under their names in the file."""
        return {name: part.tensor for name, part in self.pieces().items()}

    def weights(self) -> dict[str, Tensor]:
        """The same for raw weights, persistent buffers and the average."""
        return {name: part.tensor for name, part in self.weight_pieces().items()}

    def pieces(self) -> dict[str, Held]:
        """`tensors`, with the place of each in the whole."""
        found, likes = self.weight_pieces(), self.likes()
        for name, state in self._optimizer_states():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    found[f"{name}{key}"] = likes[name].of(value)
        return found

    def weight_pieces(self) -> dict[str, Held]:
        """Raw weights and persistent buffers (a tied weight once), and the average."""
        found: dict[str, Held] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                part = held(tensor)
                found[f"model.{name}"] = replace(part, tensor=part.tensor.detach())
                seen.add(id(tensor))
        if self.ema is not None:
            params = dict(self.model.named_parameters())
            for name, value in self.ema.shadow.items():
                found[f"ema.{name}"] = held(params[name]).of(value)
        return found

    def likes(self) -> dict[str, Held]:
        """Prefix of the state in the file -> what this process holds of the parameter."""
        params = dict(self.model.named_parameters())
        found: dict[str, Held] = {}
        for prefix, (optimizer, param) in self.optimized().items():
            name = prefix.split(".", 2)[2].removesuffix("/")
            if isinstance(optimizer, MuonOfShards):
                found[prefix] = Held(param, tuple(param.shape), writes=True)
            else:  # Muon's parts are no parameters of the model
                found[prefix] = held(params.get(name, param))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Prefix of the state in the file -> shape of the parameter, whichever process has it."""
        found = {prefix: like.shape for prefix, like in self.likes().items()}
        for number, optimizer in enumerate(self.optimizers):
            if isinstance(optimizer, MuonOfShards):
                found |= {f"optim.{number}.{n}/": shape for n, shape in optimizer.shapes.items()}
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
            self._write_tensors(hidden, state)

        def end() -> None:
            if self.rank == 0:
                self._write_content(hidden, state)
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

    def _write_tensors(self, folder: Path, state: TrainState) -> None:
        """What this process has to write: all if nothing is sharded and it is the first one."""
        pieces = state.pieces()
        cut = any(part.writes is not None for part in pieces.values())
        first = self.rank == 0
        own = {n: p for n, p in pieces.items() if (first if p.writes is None else p.writes)}
        if not own:
            return
        path = folder / (f"state-{self.rank:05d}.safetensors" if cut else "state.safetensors")
        tensors = {n: p.tensor.reshape(p.tensor.shape or 1) for n, p in own.items()}
        write_tensors(path, tensors, header(own))
        if not first:
            flush(path)  # the first one flushes the folder, of a disk that others may cache

    def _write_content(self, folder: Path, state: TrainState) -> None:
        files = sorted(path.name for path in folder.glob("state*.safetensors"))
        names = {name for file in files for name in parts_of(folder / file)}
        numbers = [name for name, tensor in state.tensors().items() if tensor.ndim == 0]
        content = {
            "format": FORMAT,
            "step": state.step,
            "world_size": self.world_size,
            "micro_batches": len(state.carries),
            "rows": sum(len(rows) for rows in state.rows) * self.world_size or None,
            "ema_updates": state.ema.num_updates if state.ema else 0,
            "identity": self.identity,
            "record": state.record,
            "optimizer_scalars": state.scalars(),
            "optimizer_tensors": sorted(names - state.weight_pieces().keys()),
            "numbers": sorted(numbers),
            "files": files,
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
    ) -> Generators | None:
        """Read the state of `step` into the live objects; returns the generators of that moment,
        None if another number of processes had them.

        content: what `content` gave, if it was asked before (it reads every byte).

        Everything is checked before anything is changed.

        Raises:
            ValueError: the state belongs to another run (each difference is listed), was made by
                another number of micro-batches, carries what another number of processes cannot
                divide, or its files are damaged.
        """
        folder, remedy = self.path(step), self._remedy(step)
        content = self.content(step) if content is None else content
        self._check(content, state, folder)
        parts: dict[str, list[FilePart]] = {}
        for file in content.get("files", ["state.safetensors"]):
            for name, part in parts_of(folder / file, remedy).items():
                parts.setdefault(name, []).append(part)
        self._check_names(parts, state, folder, content)
        carries = self._carries(content, state, folder, device)
        generators = None
        if content["world_size"] == self.world_size:
            stem = folder / f"rank-{self.rank:05d}"
            scalars = _read_json(stem.with_suffix(".json"), remedy)["rng"]
            tensors = beginning(stem.with_suffix(".safetensors"), "rng.", remedy)
            generators = Generators(tensors, scalars)
        _place(parts, state, content)
        state.carries = carries
        return generators

    def _carries(
        self, content: dict[str, Any], state: TrainState, folder: Path, device: torch.device
    ) -> list[Carry]:
        remedy = self._remedy(content["step"])

        def read(place: Place) -> Carry:
            stem = folder / f"rank-{place[0]:05d}"
            if not _read_json(stem.with_suffix(".json"), remedy)["carried"][place[1]]:
                return None
            path = stem.with_suffix(".safetensors")
            tensors = beginning(path, f"carry.{place[1]}.", remedy)
            return {name: tensor.to(device) for name, tensor in tensors.items()}

        if content["world_size"] == self.world_size:
            return [read((self.rank, number)) for number in range(len(state.carries))]
        return carries_of(state.rows, saved_rows(content), read, folder)

    def content(self, step: int) -> dict[str, Any]:
        """What state.json of this step says, after all files were held against the manifest.

        Raises:
            ValueError: a file is damaged or missing, or belongs to another step.
        """
        folder, remedy = self.path(step), self._remedy(step)
        if fault := self.agree(self._fault(folder) if self.rank == 0 else ""):
            raise ValueError(f"{fault}; {remedy}")
        content = _read_json(folder / "state.json", remedy)
        if content.get("format") not in READ:
            raise ValueError(
                f"{folder} has format {content.get('format')}, this version reads "
                f"{' and '.join(map(str, READ))}; {remedy}"
            )
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

    def _check(self, content: dict[str, Any], state: TrainState, folder: Path) -> None:
        told = differences(content["identity"], self.identity)
        if told:
            raise ValueError(
                f"{folder} belongs to a run with other settings; restore them or train into "
                f"another folder. {'; '.join(told)}"
            )
        told = (("micro_batches", len(state.carries)),)
        if not (state.rows and saved_rows(content)):
            told += (("world_size", self.world_size),)
        for name, now in told:
            if content[name] != now:
                raise ValueError(
                    f"{folder} was written with {name} {content[name]}, this run has {now}: method "
                    "state cannot be divided anew. Start it as it was started"
                )
        if content["threads"] != torch.get_num_threads():
            warnings.warn(
                f"the run had {content['threads']} threads, now {torch.get_num_threads()}: "
                "losses will not agree to the last bit",
                stacklevel=2,
            )

    def _check_names(
        self,
        parts: dict[str, list[FilePart]],
        state: TrainState,
        folder: Path,
        content: dict[str, Any],
    ) -> None:
        numbers = set(content.get("numbers", ()))
        found = {n: () if n in numbers else whole_shape(p, folder, n) for n, p in parts.items()}
        expected = {name: part.shape for name, part in state.weight_pieces().items()}
        optimized = state.shapes()
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


@torch.no_grad()
def _place(parts: dict[str, list[FilePart]], state: TrainState, content: dict[str, Any]) -> None:
    for name, part in state.weight_pieces().items():
        fill(parts[name], name, part)
    by_prefix: dict[str, list[str]] = {}
    for name in parts:
        by_prefix.setdefault(name.rpartition("/")[0] + "/", []).append(name)
    numbers, likes = set(content.get("numbers", ())), state.likes()
    for prefix, (optimizer, param) in state.optimized().items():
        values: dict[str, Any] = {}
        for name in by_prefix.get(prefix, ()):
            number = name in numbers or not parts[name][0].shape
            values[name.removeprefix(prefix)] = (
                number_of(parts[name], name) if number else beside(parts[name], name, likes[prefix])
            )
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
