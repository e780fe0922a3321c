"""The one training loop: any model with a `loss`, any source that is a function of the step.

    run = Run(model=TRM(config), source=puzzles, evaluate=accuracy, config=recipe_as_dict)
    summary = train(run, TrainSettings(steps=2000), "runs/sudoku6")

What is unusual:
- A step does not depend on how its batch is cut. `loss` returns sums, the loop divides by the
  weight of the whole global batch, and random draws belong to rows (`Draws`). So 1 x B, 2 x B/2 by
  accumulation and two processes do the same step up to rounding.
- A method may carry state from step to step (TRM's slots). Every micro-batch of every process owns
  a fixed range of rows of the global batch and with it its own state.
- Calling `train` again with the same folder goes on, with the same bits: see state.py. A state is
  saved before the evaluation of its step, and the evaluation is done again on resuming; therefore
  Ctrl-C need not wait for it and the log is the same as without the break.
- The folder belongs to one run at a time (a lock), and what cannot be written stops the run with
  one line that says what is safe: a full disk, a folder that somebody deleted.

Steps done are counted from 0 (the number of the next batch), rows of the log from 1. Devices,
autocast, DistributedDataParallel and trackers are accelerate's, sharding is torch's (sharding.py);
the loop itself only sums one short vector of statistics over the processes. Resume state is our
own, because accelerate's is pickled.

Output folder: config.json, log.jsonl, states/, best/ (on request), model/ (averaged weights, as
`save_pretrained` writes them) with model.manifest.json, summary.json; run.lock while it runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from inward.common.draws import Batch, Draws, Loss
from inward.common.files import (
    manifest_fault,
    new_folder,
    read_json,
    write_json,
    write_manifest,
    write_tensors,
)
from inward.train.ema import EMA
from inward.train.generators import Generators, kept_generators
from inward.train.identity import extend, identity_of, other_data
from inward.train.log import Log, Window, progress_bar, say, start_trackers
from inward.train.optim import build_optimizers, dense_parameters, sparse_parameters
from inward.train.place import RunFolder, locked
from inward.train.process import (
    Signals,
    Stopwatch,
    agreement,
    check_run,
    evaluation_mode,
    peak_memory,
    prepare_model,
    started_accelerator,
    widest_float,
)
from inward.train.rows import slices
from inward.train.run import NonFiniteError, Run, SavesItself
from inward.train.schedule import lr_factor
from inward.train.settings import TrainSettings
from inward.train.sharding import gathered, whole_on_first
from inward.train.shards import Shards, held
from inward.train.state import StateFolder, TrainState

_NOT_TOLD = ("log", "planned_steps", "window")
"""Entries of the record that the summary leaves out"""


def train(run: Run, settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """Train `run.model` in place; start in the empty folder `out`, or go on where it stopped.

    Returns:
        The summary that is also saved as summary.json: steps, loss, evaluation, best, seconds,
        cpu_seconds, peak_memory_bytes (of the main process, over all parts of the run), ...

    Raises:
        ValueError: settings that cannot be met; a state in `out` that belongs to another run, or is
            damaged; a log with a gap.
        BlockingIOError: another process trains into `out`.
        OSError: something cannot be written (the disk is full), or the folder was deleted.
        ConnectionError: another process of the run died; it is named.
        NonFiniteError: loss or gradient of a step is not finite; the state before it is saved.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and the state saved.
            (A command should exit with 130.)
    """
    out = Path(out)
    with started_accelerator(settings, out) as accelerator, Signals() as signals:
        check_run(run, settings, accelerator)
        with locked(accelerator, out) as place:
            loop = _Loop(run, settings, out, accelerator, signals, place)
            try:
                return loop.run_to_end()
            except RuntimeError as error:  # what torch makes of a connection that broke
                lost = place.told_lost(loop.state.step, loop.saved_step)
                if lost is None:
                    raise
                raise lost from error
            finally:
                loop.close()


class _Loop:
    """One call of `train`: the live objects and the steps of the loop."""

    def __init__(
        self,
        run: Run,
        settings: TrainSettings,
        out: Path,
        accelerator: Accelerator,
        signals: Signals,
        place: RunFolder,
    ) -> None:
        self.run = run
        self.settings = settings
        self.out = out
        self.accelerator = accelerator
        self.signals = signals
        self.place = place
        self.device = accelerator.device
        self.watch = Stopwatch()
        self.cpu_watch = Stopwatch(time.process_time)
        self.module = prepare_model(accelerator, run.model, settings)
        self.shards = Shards(dense_parameters(run.model))
        self.sparse = sparse_parameters(run.model)
        ema = None
        if settings.ema_decay:
            ema = EMA(
                self.shards.rows,
                decay=settings.ema_decay,
                ramp=settings.ema_ramp,
                by_value=bool(self.shards.cut),
            )
        self.state = TrainState(
            model=run.model,
            optimizers=build_optimizers(run.model, settings.optim, self.shards),
            ema=ema,
            carries=[None] * settings.accumulation,
            rows=slices(
                settings.batch_rows,
                settings.accumulation,
                accelerator.process_index,
                accelerator.num_processes,
            ),
        )
        self.store = StateFolder(
            out / "states",
            identity_of(settings, run.config) | {"read": dict(run.read)},
            keep=settings.keep,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            barrier=accelerator.wait_for_everyone,
            agree=agreement(accelerator),
        )
        self.extension = self.changed_data = ""
        self.divided = 0  # how many processes wrote the state, if they were not as many as now
        self.saved_step: int | None = None
        self.resumed = self._start_or_resume()
        self.finished = self._finished_summary()
        self.earlier = dict(self.state.record)
        self.window = Window(**self.state.record.get("window", {}))
        step = self.state.step
        redo = self._evaluation_due() and self.finished is None
        eval_step = step - 1 if redo else step
        self.log = Log(
            out / "log.jsonl",
            accelerator,
            step=step,
            eval_step=eval_step,
            expected=self.state.record.get("log"),
            agree=self.store.agree,
        )
        start_trackers(accelerator, run.config or asdict(settings))
        self.bar = progress_bar(
            settings.steps, step, mode=settings.progress, main=accelerator.is_main_process
        )

    # --- beginning and end ----------------------------------------------------------------------

    def _start_or_resume(self) -> bool:
        self.out.mkdir(parents=True, exist_ok=True)
        self.store.clean()
        steps = self.store.steps()
        if steps and steps[-1] > self.settings.steps:
            raise ValueError(
                f"{self.out} is at step {steps[-1]}, beyond steps = {self.settings.steps}; "
                "ask for more steps or train into another folder"
            )
        if steps:
            content = self.store.content(steps[-1])
            self.extension = extend(content, self.settings)
            self.changed_data = self._other_data(content)
            generators = self.store.load(self.state, steps[-1], self.device, content)
            if generators is not None:
                generators.restore(self.device)
            else:
                self._seed(self.settings.seed, steps[-1], self.state.rows[0].start)
                self.divided = content["world_size"]
            self._check_decay()
            self.saved_step = steps[-1]
        else:
            self._seed(self.settings.seed, self.store.rank)
        if self.accelerator.is_main_process:
            with self._writing():
                write_json(self.out / "config.json", self.run.config)
        return bool(steps)

    @staticmethod
    def _seed(*words: int) -> None:
        set_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))

    def _other_data(self, content: dict[str, Any]) -> str:
        """Let a saved state fit a run on other data, if that is allowed; what that is, in words."""
        run, told = self.run, other_data(content, self.store.identity, self.run.data_keys)
        if told and not run.other_data:
            raise ValueError(
                f"{self.out} was trained on other data: {told}. Restore it, train into another "
                "folder, or let the run go on with it: --other-data"
            )
        return f"goes on with other data after step {content['step']}: {told}" if told else ""

    def _check_decay(self) -> None:
        """A decay that has begun keeps its end."""
        now = self.settings
        if now.schedule != "late":
            return
        old = self.state.record.get("planned_steps", now.steps)
        if old != now.steps and self.state.step > min(old, now.steps) - now.decay_steps:
            raise ValueError(
                f"{self.out} is at step {self.state.step}, its rate falls towards step {old}; "
                f"steps = {now.steps} comes too late: finish it, or start afresh"
            )

    def run_to_end(self) -> dict[str, Any]:
        if self.finished is not None:
            self._say(f"{self.out} is finished at step {self.state.step}; nothing to do")
            self._repair_model()
            return self.finished
        if self.resumed:
            self._say(f"resuming {self.out} after step {self.state.step}")
            if self.extension:
                self._say(f"{self.out} is {self.extension}")
            if self.divided:
                self._say(
                    f"{self.out} was written by {self.divided} processes, now there are "
                    f"{self.store.world_size}: rows keep their data, their state and what is drawn "
                    "for them; only dropout is drawn anew"
                )
            if self.changed_data:
                self._say(f"{self.out} {self.changed_data}")
            if self._evaluation_due():
                self.evaluate()
        while self.state.step < self.settings.steps:
            stop = self.advance()
            last = self.state.step == self.settings.steps
            if stop or last or _due(self.state.step, self.settings.save_every):
                self.save()
            if stop and not last:
                self._stop()
            if self._evaluation_due():
                self.evaluate()
        return self.finish()

    def _finished_summary(self) -> dict[str, Any] | None:
        path = self.out / "summary.json"
        if not self.resumed or self.state.step < self.settings.steps or not path.exists():
            return None
        try:
            summary = read_json(path)
            return summary if summary["steps"] == self.state.step else None
        except (ValueError, TypeError, KeyError):
            return None  # it is made again from the state

    def _repair_model(self) -> None:
        """Write the model of a finished run again if files of it are gone."""
        folder, manifest = self.out / "model", self.out / "model.manifest.json"
        fault = ""
        if self.accelerator.is_main_process:  # the others would see it while it is written
            fault = manifest_fault(folder, manifest) if manifest.exists() else ""
            if not folder.is_dir() or not any(folder.iterdir()):
                fault = f"{folder} is missing"
        fault = self.store.agree(fault)
        if fault.endswith("is missing"):
            self._say(f"{folder} is not whole; it is written again")
            self._save_model(folder)
        elif fault:
            self._say(f"{fault}; delete {folder} and start again to have it written anew")

    def _stop(self) -> None:
        told = f"stopped after step {self.state.step}; the same command goes on from {self.out}"
        self._say(told)
        raise KeyboardInterrupt(told)

    def finish(self) -> dict[str, Any]:
        self._save_model(self.out / "model")
        self._update_record()
        summary = {
            "steps": self.state.step,
            "rows": self.state.step * self.settings.batch_rows,
            "parameters": sum(p.numel() for p in self.shards.params.values()),
            "sparse_parameters": sum(p.numel() for p in self.sparse.values()),
            "processes": self.accelerator.num_processes,
            "device": self.device.type,
            **{k: v for k, v in self.state.record.items() if k not in _NOT_TOLD},
        }
        if self.accelerator.is_main_process:
            with self._writing():
                write_json(self.out / "summary.json", summary)
        self.accelerator.wait_for_everyone()
        return summary

    def close(self) -> None:
        self.bar.close()
        self.log.close()

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)

    def _writing(self) -> AbstractContextManager[None]:
        return self.place.writing(self.state.step, self.saved_step)

    # --- one step -------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do one optimizer step; true if somebody asked to stop."""
        watch = Stopwatch()
        if self.state.step in self.run.resets:
            self.state.optimizers = build_optimizers(
                self.run.model, self.settings.optim, self.shards
            )
        before = Generators.capture(self.device)
        batches = [self._batch(rows) for rows in self.state.rows]
        weight = self._global_weight(batches)
        losses = self._backward(batches, weight)
        self.shards.take_gradients()
        stats = self._reduce(losses, weight)
        if stats.gone:
            raise self.place.told_gone(self.state.step)
        if not stats.finite:
            self._stop_non_finite(batches, losses, before)
        lr = self._update(stats.grad_norm)
        # Contiguous as they would be after a resume, so that kernels add in the same order.
        self.state.carries = [
            loss.state and {name: value.contiguous() for name, value in loss.state.items()}
            for loss in losses
        ]
        self.state.step += 1
        rows = self.settings.batch_rows
        self.window.add(stats.loss, stats.metrics, rows, watch.seconds())
        self._log_step(stats, lr)
        return stats.stop

    def _batch(self, rows: range) -> Batch:
        batch = self.run.source.batch(self.state.step, rows, self.settings.batch_rows)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _global_weight(self, batches: list[Batch]) -> float:
        """Number of loss items in the whole global batch; rows if the source does not say."""
        if "weight" not in batches[0]:
            return float(self.settings.batch_rows)
        own = torch.stack(
            [batch["weight"].to(widest_float(self.device)) for batch in batches]
        ).sum()
        total = float(cast(Tensor, self.accelerator.reduce(own, reduction="sum")))
        if not total > 0:
            raise ValueError(f"batch {self.state.step} has a weight of {total}: nothing to learn")
        return total

    def _backward(self, batches: list[Batch], weight: float) -> list[Loss]:
        scale = self.accelerator.num_processes / weight  # DDP takes the mean over processes
        losses: list[Loss] = []
        for rows, batch, carry in zip(self.state.rows, batches, self.state.carries, strict=True):
            draws = Draws(
                self.settings.seed,
                self.state.step,
                rows,
                self.settings.batch_rows,
                device=self.device,
            )
            last = len(losses) + 1 == len(batches)
            # Gradients travel between processes once per step, with the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                loss = Loss(*self.module(batch, carry, draws))
                self.accelerator.backward(loss.total * scale)
            attached = [n for n, t in (loss.state or {}).items() if t.requires_grad]
            assert not attached, f"method state {attached} must be detached"
            loss.total = loss.total.detach()
            losses.append(loss)
        return losses

    def _reduce(self, losses: list[Loss], weight: float) -> _Stats:
        """Sum loss, metrics and flags over micro-batches and processes; one wait per step."""
        names = sorted(losses[0].metrics)
        assert all(sorted(x.metrics) == names for x in losses), "metrics must keep their names"
        wide = widest_float(self.device)

        def total(values: list[Tensor]) -> Tensor:
            return torch.stack([v.detach().to(self.device, wide) for v in values]).sum()

        sums = [total([loss.total for loss in losses])]
        sums += [total([x.metrics[name][i] for x in losses]) for name in names for i in (0, 1)]
        bad = [~g.isfinite().all() for g in self._sparse_grads().values()]
        sums += [total(bad)] if bad else [torch.zeros((), device=self.device, dtype=wide)]
        flags = (self.signals.asked, self.place.gone())
        sums += [torch.tensor(float(flag), device=self.device, dtype=wide) for flag in flags]
        cut = bool(self.shards.cut)
        sums += [self.shards.square_sum(wide) if cut else torch.zeros_like(sums[0])]
        summed = cast(Tensor, self.accelerator.reduce(torch.stack(sums), reduction="sum"))
        loss, *values, num_bad, stop, gone, squares = summed.tolist()
        grad_norm = math.sqrt(squares)
        if not cut:
            grads = list(self.shards.gradients().values())
            grad_norm = float(torch.nn.utils.get_total_norm(grads))
        metrics = dict(zip(names, zip(values[0::2], values[1::2], strict=True), strict=True))
        finite = math.isfinite(loss) and math.isfinite(grad_norm) and num_bad == 0
        return _Stats(loss / weight, grad_norm, metrics, finite, stop > 0, gone > 0)

    def _sparse_grads(self) -> dict[str, Tensor]:
        grads = {name: p.grad for name, p in self.sparse.items() if p.grad is not None}
        return {n: g._values() if g.is_sparse else g for n, g in grads.items()}

    def _update(self, grad_norm: float) -> float:
        """Clip, move the weights and the average; returns the rate of the first group."""
        clip = self.settings.clip
        if clip:
            norm = torch.tensor(grad_norm, device=self.device)
            torch.nn.utils.clip_grads_with_norm_(self.shards.rows.values(), clip, norm)
        factor = lr_factor(self.settings, self.state.step + 1)
        for optimizer in self.state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
        self.shards.drop_gradients()
        for param in self.sparse.values():
            param.grad = None
        if self.state.ema is not None:
            self.state.ema.update()
        return self.state.optimizers[0].param_groups[0]["lr"]

    def _log_step(self, stats: _Stats, lr: float) -> None:
        self.bar.set_postfix_str(f"loss {stats.loss:.4g}", refresh=False)
        self.bar.update()
        step = self.state.step
        if not (_due(step, self.settings.log_every) or step == self.settings.steps):
            return
        times = {"lr": lr, "grad_norm": stats.grad_norm, "seconds": self._seconds()}
        with self._writing():
            self.log.row("train", step, {**self.window.means(), **times})
        self.state.record["loss"] = self.window.loss / self.window.steps
        self.window = Window()

    def _stop_non_finite(
        self, batches: list[Batch], losses: list[Loss], before: Generators
    ) -> None:
        """Nothing was updated yet: save the state before the step, then say what went wrong."""
        culprit = self._first_non_finite(batches, losses)
        raise NonFiniteError(self.state.step + 1, culprit, self.save(before))

    def _first_non_finite(self, batches: list[Batch], losses: list[Loss]) -> str:
        for name, tensor in self._suspects(batches, losses):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return name
        return "a tensor of another process"

    def _suspects(self, batches: list[Batch], losses: list[Loss]) -> Iterator[tuple[str, Tensor]]:
        """Tensors in the order in which a bad value travels through a step."""
        params = self.run.model.named_parameters()
        yield from ((f"parameter {n}", held(p.detach()).tensor) for n, p in params)
        # Infinity in a buffer is usually meant (masks), NaN never.
        buffers = self.run.model.named_buffers()
        yield from ((f"buffer {n}", b.masked_fill(b.isinf(), 0)) for n, b in buffers)
        for batch, carry in zip(batches, self.state.carries, strict=True):
            yield from ((f"batch entry {n}", v) for n, v in batch.items())
            yield from ((f"method state {n}", v) for n, v in (carry or {}).items())
        yield from (("the loss", loss.total) for loss in losses)
        grads = {**self.shards.gradients(), **self._sparse_grads()}
        yield from ((f"the gradient of {n}", g) for n, g in grads.items())
        yield "the gradient norm", torch.tensor(math.nan)  # finite gradients, infinite norm

    # --- evaluation and saving ------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        if self.run.evaluate is None or self.state.step == 0:
            return False
        last = self.state.step == self.settings.steps
        return last or _due(self.state.step, self.settings.eval_every)

    def evaluate(self) -> None:
        """Evaluate the averaged weights; training goes on as if it had not happened."""
        assert self.run.evaluate is not None, "nothing to evaluate with"
        watch = Stopwatch()
        with (
            self._averaged(),
            gathered(self.module),
            kept_generators(self.device),
            evaluation_mode(self.run.model),
            torch.no_grad(),
            self.accelerator.autocast(),
        ):
            found = self.run.evaluate(self.run.model)
        metrics = {name: float(value) for name, value in found.items()}
        self.state.record["evaluation"] = metrics
        row = {"metrics": metrics, "seconds": watch.seconds()}
        with self._writing():
            self.log.row("eval", self.state.step, row)
        self._keep_best(metrics)

    def _keep_best(self, metrics: dict[str, float]) -> None:
        name = self.settings.best_metric
        if not name:
            return
        if name not in metrics:
            raise ValueError(f"best_metric is {name!r}, evaluation gives {sorted(metrics)}")
        best = self.state.record.get("best")
        if best is None or metrics[name] > best["value"]:
            self.state.record["best"] = {"value": metrics[name], "step": self.state.step}
            self._save_model(self.out / "best")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with nullcontext() if self.state.ema is None else self.state.ema.swapped():
            yield

    def save(self, generators: Generators | None = None) -> Path:
        """Save the resume state of this step, once."""
        if self.saved_step == self.state.step:
            return self.store.path(self.state.step)
        self._update_record()
        with self._writing():
            self.log.sync()
            path = self.store.save(self.state, generators or Generators.capture(self.device))
        self.saved_step = self.state.step
        return path

    def _update_record(self) -> None:
        cpu = self.cpu_watch.seconds()
        self.state.record |= {
            "window": self.window.to_json(),
            "log": self.log.counts(self.state.step),
            "planned_steps": self.settings.steps,
            "seconds": self._seconds(),
            "cpu_seconds": self.earlier.get("cpu_seconds", 0.0) + cpu,
            "peak_memory_bytes": max(self.earlier.get("peak_memory_bytes", 0), peak_memory()),
        }
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self.state.record["peak_device_memory_bytes"] = peak

    def _seconds(self) -> float:
        return self.earlier.get("seconds", 0.0) + self.watch.seconds()

    def _save_model(self, folder: Path) -> None:
        first = self.accelerator.is_main_process
        with self._averaged(), whole_on_first(self.run.model, first=first):
            if first:
                with self._writing():
                    self._write_model(folder)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path) -> None:
        with new_folder(folder) as hidden:
            if isinstance(self.run.model, SavesItself):
                self.run.model.save_pretrained(hidden)
            else:
                write_tensors(hidden / "model.safetensors", self.run.model.state_dict())
        write_manifest(folder, folder.with_name(f"{folder.name}.manifest.json"))


@dataclass(frozen=True)
class _Stats:
    """Global numbers of one step."""

    loss: float
    grad_norm: float
    metrics: dict[str, tuple[float, float]]
    finite: bool
    stop: bool
    gone: bool
    """The folder of the run is not there any more."""


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
