"""The loop in one process: accumulation, stopping, evaluation, what it writes."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading

import pytest
import torch
from accelerate import Accelerator, tracking
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from safetensors.torch import load_file
from torch import nn

from inward.common.draws import Loss
from inward.train.loop import NonFiniteError, Run, train
from inward.train.schedule import lr_factor
from inward.train.settings import OptimSettings
from tests.train.toy import (
    Toy,
    ToySource,
    evaluate,
    rows_of,
    saved_tensors,
    timeless,
    toy_settings,
    toy_train,
)


def losses(out) -> list[float]:
    return [row["loss"] for row in rows_of(out)]


def assert_close_states(one, two, step, tolerance):
    left, right = saved_tensors(one, step), saved_tensors(two, step)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=tolerance, atol=tolerance, msg=name)


# --- one step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_does_not_change_the_run(tmp_path, weighted):
    source = {"weighted": weighted}
    for parts in (1, 2, 4):
        options = {"accumulation": parts, "save_every": 1, "keep": 20, "source": source}
        toy_train(tmp_path / str(parts), **options)
    whole = rows_of(tmp_path / "1")
    for parts in ("2", "4"):
        for expected, row in zip(whole, rows_of(tmp_path / parts), strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
            assert row["metrics"] == expected["metrics"]
        assert_close_states(tmp_path / "1", tmp_path / parts, 1, 1e-6)
        assert_close_states(tmp_path / "1", tmp_path / parts, 10, 1e-3)


def test_a_step_is_the_plain_step(tmp_path):
    """Loss, gradient norm, clipping and rate against ten lines without the loop."""
    clip = 0.05
    toy_train(tmp_path, steps=1, clip=clip, ema_decay=0.0, source={"weighted": True})
    model, source = Toy(), ToySource(weighted=True)
    from inward.common.draws import Draws
    from inward.train.optim import AdamATan2, dense_parameters

    batch = source.batch(0, range(8), 8)
    loss = model.loss(batch, None, Draws(0, 0, range(8), 8)).total / batch["weight"]
    loss.backward()
    dense = list(dense_parameters(model).values())
    norm = torch.nn.utils.clip_grad_norm_(dense, clip)
    AdamATan2(dense, 2e-2 / 4, weight_decay=0.1).step()  # first of four warm-up steps
    [row] = rows_of(tmp_path)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-5) and norm > clip
    assert row["lr"] == 2e-2 / 4
    found = saved_tensors(tmp_path, 1)
    for name, param in dense_parameters(model).items():
        torch.testing.assert_close(found[f"model.{name}"], param.detach(), msg=name)


def test_rates_follow_the_schedule(tmp_path):
    options = {"schedule": "cosine", "warmup": 3, "min_ratio": 0.1}
    toy_train(tmp_path, **options)
    settings = toy_settings(**options)
    expected = [2e-2 * lr_factor(settings, step) for step in range(1, 11)]
    assert [row["lr"] for row in rows_of(tmp_path)] == expected


def falls_by(out) -> float:
    found = losses(out)
    return sum(found[-10:]) / sum(found[:10])


def test_it_learns(tmp_path):
    toy_train(tmp_path, steps=80, batch_rows=16)
    assert falls_by(tmp_path) < 0.7


def test_muon_trains(tmp_path):
    optim = OptimSettings(name="muon", lr=5e-2, muon_rest="adamw", sparse_lr=1e-2)
    toy_train(tmp_path, steps=30, batch_rows=16, optim=optim)
    assert falls_by(tmp_path) < 0.8


def test_bfloat16_autocast_keeps_float32_weights(tmp_path):
    toy_train(tmp_path / "a", precision="bfloat16")
    toy_train(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "b")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), rel=0.05)
    found = saved_tensors(tmp_path / "a", 10)
    assert {t.dtype for n, t in found.items() if n.startswith("model.")} == {torch.float32}


# --- the log ------------------------------------------------------------------------------------


def test_rows_of_the_log(tmp_path):
    toy_train(tmp_path, steps=4, eval_every=2)
    rows = timeless(tmp_path)
    kinds = [(row["kind"], row["step"]) for row in rows]
    trains = [("train", 1), ("train", 2), ("train", 3), ("train", 4)]
    assert kinds == [*trains[:2], ("eval", 2), *trains[2:], ("eval", 4)]
    keys = {"kind", "step", "loss", "lr", "grad_norm", "metrics", "rows_per_second", "seconds"}
    assert set(rows_of(tmp_path)[0]) == keys
    assert set(rows[0]["metrics"]) == {"accuracy", "age"}
    assert set(rows_of(tmp_path, "eval")[0]["metrics"]) == {"accuracy", "loss"}


def test_rows_may_cover_several_steps(tmp_path):
    toy_train(tmp_path / "each", steps=5)
    toy_train(tmp_path / "two", steps=5, log_every=2)
    each, two = rows_of(tmp_path / "each"), rows_of(tmp_path / "two")
    assert [row["step"] for row in two] == [2, 4, 5]
    assert two[0]["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2)
    mean = (each[2]["metrics"]["age"] + each[3]["metrics"]["age"]) / 2
    assert two[1]["metrics"]["age"] == pytest.approx(mean)


class Recorder(GeneralTracker):
    name = "tensorboard"
    requires_logging_directory = True
    rows: list = []  # noqa: RUF012 (shared on purpose: accelerate makes the instance)

    def __init__(self, run_name, logging_dir, **_):
        super().__init__()

    tracker = None

    def store_init_configuration(self, values):
        self.rows.append(values)

    def log(self, values, step=None, **_):
        self.rows.append((step, values))

    def finish(self):
        self.rows.append("finished")


def test_trackers_get_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(Recorder, "rows", [])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    run = Run(Toy(), ToySource(), config={"model": {"width": 8}, "list": [1]})
    train(run, toy_settings(steps=2, trackers=("tensorboard",)), tmp_path)
    config, first, second, end = Recorder.rows
    assert config == {"model.width": 8, "list": "[1]"} and end == "finished"
    assert [first[0], second[0]] == [1, 2]
    row = rows_of(tmp_path)[1]
    assert second[1]["train/loss"] == row["loss"]
    assert second[1]["train/metrics.age"] == row["metrics"]["age"]


def test_a_tracker_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(ValueError, match="not installed: wandb"):
        toy_train(tmp_path, trackers=("wandb",))


def test_the_bar_is_silent_unless_asked(tmp_path, capfd):
    toy_train(tmp_path / "a", steps=2)
    assert capfd.readouterr().err == ""
    toy_train(tmp_path / "b", steps=2, progress="on")
    shown = capfd.readouterr().err
    assert "2/2" in shown and "loss" in shown


# --- evaluation and the model -------------------------------------------------------------------


def tensor_bytes() -> int:
    """Memory of all live tensors, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # By type: isinstance would wake torch's deprecated objects, which warn; and subclasses, the
        # fake tensors that compiling leaves behind, have no memory.
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_evaluation_uses_the_average_and_copies_nothing(tmp_path):
    model, seen = Toy(dropout=0.2, width=600), {}

    def look() -> tuple[int, float]:
        return tensor_bytes(), model.mix.weight.sum().item()

    def note(step, batch):
        assert model.dropout.training
        if step == 2:
            seen["next step"] = look()

    def watch(evaluated: nn.Module) -> dict[str, float]:
        assert evaluated is model and not model.dropout.training
        seen["evaluation"] = look()
        return evaluate(model)

    run = Run(model, ToySource(hook=note), watch)
    train(run, toy_settings(eval_every=2, steps=3, ema_decay=0.5), tmp_path)
    size = sum(p.numel() * 4 for p in model.parameters())
    assert size > 1.4e6
    (memory, average), (memory_after, raw) = seen["evaluation"], seen["next step"]
    assert memory_after > 3.9 * size, "weights, average and two moments (the table has none)"
    assert abs(memory - memory_after) < 0.05 * size
    assert average != raw


def test_evaluation_leaves_the_run_alone(tmp_path):
    """Raw weights, average, optimizers and losses to the last bit, whether or not it evaluates."""
    toy_train(tmp_path / "never", dropout=0.2)
    toy_train(tmp_path / "often", dropout=0.2, eval_every=1)
    assert losses(tmp_path / "never") == losses(tmp_path / "often")
    often = saved_tensors(tmp_path / "often", 10)
    for name, tensor in saved_tensors(tmp_path / "never", 10).items():
        assert torch.equal(tensor, often[name]), name


def test_frozen_modules_keep_their_mode(tmp_path):
    model = Toy(dropout=0.5)
    modes = []

    def note(step, batch):
        modes.append(model.dropout.training)
        model.dropout.eval()

    train(Run(model, ToySource(hook=note), evaluate), toy_settings(steps=3, eval_every=1), tmp_path)
    assert modes == [True, False, False]


def test_the_saved_model_is_the_average(tmp_path):
    summary = toy_train(tmp_path)
    model = load_file(tmp_path / "model" / "model.safetensors")
    state = saved_tensors(tmp_path, 10)
    for name in ("hidden.weight", "head.bias"):
        assert torch.equal(model[name], state[f"ema.{name}"])
        assert not torch.equal(model[name], state[f"model.{name}"])
    assert torch.equal(model["table.weight"], state["model.table.weight"])
    rebuilt = Toy()
    rebuilt.load_state_dict(model)
    assert evaluate(rebuilt) == summary["evaluation"]


class Published(Toy):
    def save_pretrained(self, folder):
        (folder / "config.json").write_text(json.dumps({"bias": self.head.bias.tolist()}))


def test_models_that_save_themselves_do(tmp_path):
    train(Run(Published(), ToySource()), toy_settings(), tmp_path)
    assert os.listdir(tmp_path / "model") == ["config.json"]
    bias = json.loads((tmp_path / "model" / "config.json").read_text())["bias"]
    assert bias == saved_tensors(tmp_path, 10)["ema.head.bias"].tolist()


def test_the_best_model_is_kept(tmp_path):
    values = iter([0.1, 0.7, 0.3, 0.2])
    biases = []

    def scripted(model):
        biases.append(model.head.bias.detach().clone())
        return {"score": next(values)}

    settings = toy_settings(steps=4, eval_every=1, best_metric="score")
    summary = train(Run(Toy(), ToySource(), scripted), settings, tmp_path)
    assert summary["best"] == {"value": 0.7, "step": 2}
    best = load_file(tmp_path / "best" / "model.safetensors")
    assert torch.equal(best["head.bias"], biases[1])


def test_the_summary(tmp_path):
    summary = toy_train(tmp_path, steps=3)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["steps"] == 3 and summary["rows"] == 24 and summary["processes"] == 1
    assert summary["sparse_parameters"] == 20 * 8
    assert summary["loss"] == losses(tmp_path)[-1]
    assert summary["seconds"] > 0 and summary["cpu_seconds"] > 0
    assert summary["peak_memory_bytes"] > 50e6


# --- stopping -----------------------------------------------------------------------------------


def poison(step, batch):
    if step == 4:
        batch["inputs"][3, 1] = float("nan")


class RootOfNothing(Toy):
    """The loss is finite, the gradient of sqrt at 0 is not."""

    def loss(self, batch, state, draws):
        loss = super().loss(batch, state, draws)
        return Loss(loss.total + self.head.bias.sub(self.head.bias.detach()).abs().sqrt().sum())


class Overflowing(Toy):
    def loss(self, batch, state, draws):
        loss = super().loss(batch, state, draws)
        spoiled = dict(loss.state or {})
        spoiled["memory"] = spoiled["memory"] + torch.inf * (spoiled["age"] > 1)[:, None].float()
        return Loss(loss.total, loss.metrics, spoiled)


def test_nan_stops_before_the_update_and_the_run_can_go_on(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 5 .*batch entry inputs") as caught:
        train(Run(Toy(dropout=0.1), ToySource(hook=poison), evaluate), toy_settings(), tmp_path)
    assert (caught.value.step, caught.value.tensor) == (5, "batch entry inputs")
    assert len(losses(tmp_path)) == 4
    assert all(t.isfinite().all() for t in saved_tensors(tmp_path, 4).values())
    toy_train(tmp_path, dropout=0.1)  # with clean data
    toy_train(tmp_path / "clean", dropout=0.1)
    assert losses(tmp_path) == losses(tmp_path / "clean")


@pytest.mark.parametrize(
    "model, told",
    [(RootOfNothing(), "the gradient of head.bias"), (Overflowing(), "method state memory")],
)
def test_the_first_bad_tensor_is_named(tmp_path, model, told):
    with pytest.raises(NonFiniteError, match=told):
        train(Run(model, ToySource()), toy_settings(), tmp_path)


def test_a_bad_weight_is_named(tmp_path):
    model = Toy()
    model.mix.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 1 .*parameter mix\.weight"):
        train(Run(model, ToySource()), toy_settings(), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, capfd):
    def press(step, batch):
        if step == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    source = ToySource(hook=press)
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        train(Run(Toy(dropout=0.1), source, evaluate), toy_settings(eval_every=4), tmp_path)
    assert signal.getsignal(number) == before
    told = capfd.readouterr().err
    assert "the same command goes on" in told and str(tmp_path) in told
    assert len(losses(tmp_path)) == 4 and saved_tensors(tmp_path, 4)
    assert rows_of(tmp_path, "eval") == [], "the evaluation waits for the resume"
    toy_train(tmp_path, dropout=0.1, eval_every=4)
    toy_train(tmp_path / "whole", dropout=0.1, eval_every=4)
    assert timeless(tmp_path) == timeless(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    reached = []

    def press(step, batch):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(step)

    with pytest.raises(KeyboardInterrupt):
        train(Run(Toy(), ToySource(hook=press)), toy_settings(), tmp_path)
    assert not reached and len(losses(tmp_path)) == 3
    assert not list((tmp_path / "states").glob("*"))


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=toy_train, args=(tmp_path,))
    thread.start()
    thread.join()
    assert len(losses(tmp_path)) == 10 and signal.getsignal(signal.SIGINT) == before


# --- settings that cannot be met ----------------------------------------------------------------


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_rows is 8, but must be a multiple of 3"):
        toy_train(tmp_path, accumulation=3)
    assert not list(tmp_path.iterdir())


def test_best_metric_needs_an_evaluation_that_gives_it(tmp_path):
    with pytest.raises(ValueError, match="has no evaluate"):
        train(Run(Toy(), ToySource()), toy_settings(best_metric="accuracy"), tmp_path)
    with pytest.raises(ValueError, match=r"'exact'.*accuracy"):
        toy_train(tmp_path, best_metric="exact")


def test_ignored_settings_warn(tmp_path):
    with pytest.warns(UserWarning, match="eval_every is ignored"):
        train(Run(Toy(), ToySource()), toy_settings(steps=1, eval_every=1), tmp_path)


def test_config_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        train(Run(Toy(), ToySource(), config={"x": object()}), toy_settings(), tmp_path)


def test_a_weight_of_zero_is_refused(tmp_path):
    def nothing(step, batch):
        batch["weight"] = torch.zeros(())

    with pytest.raises(ValueError, match="nothing to learn"):
        train(Run(Toy(), ToySource(hook=nothing)), toy_settings(), tmp_path)


def test_another_accelerator_of_the_process_is_laid_aside_and_comes_back(tmp_path):
    other = Accelerator(cpu=True, mixed_precision="no")  # as transformers' Trainer leaves one
    try:
        toy_train(tmp_path / "a", precision="bfloat16")
        assert other.state.mixed_precision == "no"
        assert other.mixed_precision == "no"
    finally:
        AcceleratorState._reset_state(True)
