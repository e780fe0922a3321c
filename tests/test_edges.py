"""Every number that somebody sets has an edge: its last good value is taken, the next is refused.

Defaults that a paper or its published code fixed stand here too, as those have them.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from inward.common import halting
from inward.common.sampling import Sampling
from inward.methods.coconut.settings import CoconutSettings
from inward.methods.coconut.switch import Boundary, Budget, EntropySwitch, Scripted, Speaking
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.settings import CollapseError, Depth, HuginnSettings, Watch
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from inward.methods.trm.settings import TRMSettings

BARE = TRMSettings(prefix_len=0, num_identifiers=0, seq_len=12, hidden_size=16, num_heads=2)
INF, NAN = math.inf, math.nan


def trm(**change: Any) -> TRMSettings:
    return replace(BARE, **change)


def attention(**change: Any) -> TRMSettings:
    return trm(mixer="attention", **change)


def huginn(**change: Any) -> HuginnConfig:
    return HuginnConfig(**{"n_embd": 8, "n_heads": 2, **change})


EDGES: list[tuple[Callable[..., Any], str, list[Any], list[Any]]] = [
    (trm, "vocab_size", [2], [1]),
    (trm, "seq_len", [1], [0]),
    (trm, "hidden_size", [1], [0]),
    (trm, "num_layers", [1], [0]),
    (trm, "num_heads", [1], [0]),
    (trm, "T", [1], [0]),
    (trm, "n", [1], [0]),
    (trm, "gradient_k", [1], [0]),
    (trm, "n_sup", [1], [0]),
    (trm, "prefix_len", [0], [-1]),
    (trm, "num_identifiers", [0], [-1]),
    (trm, "swiglu_multiple", [1], [0]),
    (trm, "exploration", [0.0, 1.0], [-0.01, 1.01, NAN]),
    (trm, "label_smoothing", [0.0, 0.99], [-0.01, 1.0, NAN]),
    (trm, "leave", [0.0, 1.0], [-0.01, 1.01, NAN]),
    (trm, "stay", [0.0, 1.0], [-0.01, 1.01, NAN]),
    (trm, "start_noise", [0.0, 100.0], [-0.01, INF, NAN]),
    (trm, "kernel_size", [1, 3, 7], [-1, 0, 2]),
    (trm, "grid", [(3, 4), (12, 1), None], [(3, 3), (4, 4)]),
    (
        trm,
        "cycle_schedule",
        [(), ((0, 1, 1),), ((1, 1, 2), (2, 2, 1))],
        [((0, 0, 1),), ((0, 1, 0),), ((0, 1),), ((2, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 2, 2))],
    ),
    (attention, "hidden_size", [4, 12], [6, 2]),  # heads of width 2 and 6, not 3 and 1
    (lambda **c: attention(positions="rope2d", **c), "hidden_size", [8, 16], [4, 12]),
    (attention, "mask_padding", [False, True], []),
    (trm, "mask_padding", [False], [True]),
    (trm, "positions", ["none", "learned"], ["rope", "rope2d"]),
    (lambda **c: trm(mixer="cube", **c), "seq_len", [1, 16, 81], [12, 15, 17]),
    (lambda **c: trm(mixer="cube", seq_len=16, **c), "prefix_len", [0], [1]),
    (lambda **c: trm(mixer="cube", seq_len=16, **c), "num_identifiers", [0], [1]),
    (lambda **c: trm(mixer="conv", **c), "prefix_len", [1], [0]),
    (trm, "answer_update", [True], [False]),
    (lambda **c: trm(latents=1, **c), "answer_update", [True, False], []),
    (lambda **c: trm(num_identifiers=1, prefix_len=2, **c), "identifier_dim", [None, 32], [33]),
    (lambda **c: trm(num_identifiers=1, **c), "prefix_len", [1], [0]),
    (TiDARSettings, "block_size", [1], [0]),
    (lambda **c: TiDARSettings(shifted=True, **c), "block_size", [2], [1]),
    (lambda **c: TiDARSettings(shifted=True, **c), "masking", ["full"], ["random"]),
    (TiDARSettings, "alpha", [1e-9, 1e9], [0.0, -1.0, INF, NAN]),
    (TiDARSettings, "min_mask", [1e-9, 1.0], [0.0, 1.01, NAN]),
    (TiDARSettings, "decay", [1e-9, 1.0], [0.0, 1.01, NAN]),
    (TiDARSettings, "distill", [0.0, 1.0], [-0.01, 1.01, NAN]),
    (TiDARSettings, "max_logits", [0], [-1]),
    (TiDARSettings, "masking", ["full", "random"], ["none"]),
    (TiDARSettings, "grid", ["fixed", "random"], ["free"]),
    (TiDARSettings, "dense_masks", ["one", "batch"], ["two"]),
    (AdapterSettings, "rank", [1], [0]),
    (AdapterSettings, "alpha", [1e-9], [0.0, INF, NAN]),
    (AdapterSettings, "seed", [0], [-1]),
    (Depth, "mean", [1], [0]),
    (Depth, "backprop", [1], [0]),
    (Depth, "sigma", [0.0], [-0.01]),
    (Depth, "ramp", [0], [-1]),
    (Depth, "longest", [0.0, 1.0], [-1.0, 0.01, 0.99]),
    (Depth, "sampling", ["step", "row", "fixed"], ["batch"]),
    (Watch, "action", ["warn", "stop", "off"], ["on"]),
    (Watch, "every", [1], [0]),
    (Watch, "rows", [1], [0]),
    (Watch, "after", [0], [-1]),
    (huginn, "n_embd", [4, 8, 12], [0, 2, 6, 10]),
    (huginn, "n_heads", [1, 2, 4], [0, 3, 8]),
    (huginn, "num_key_value_heads", [2], [1]),
    (huginn, "intermediate_size", [1], [0]),
    (huginn, "vocab_size", [2], [1]),
    (huginn, "block_size", [1], [0]),
    (huginn, "n_layers_in_prelude", [0], [-1]),
    (huginn, "n_layers_in_recurrent_block", [1], [0]),
    (huginn, "n_layers_in_coda", [0], [-1]),
    (huginn, "mean_recurrence", [1], [0]),
    (huginn, "mean_backprop_depth", [1], [0]),
    (huginn, "state_init", ["like-init", "zero", "normal"], ["gaussian"]),
    (CoconutSettings, "feedback", ["none", "norm", "projector", "adapter"], ["linear"]),
    (CoconutSettings, "distill", [0.0, 2.0], [-0.01]),
    (CoconutSettings, "step_decoder", [0.0, 2.0], [-0.01]),
    (CoconutSettings, "thoughts_per_step", [1], [0]),
    (CoconutSettings, "feedback_width", [None, 1], [0]),
    (lambda **c: Scripted(**{"thoughts": (1,), **c}), "thoughts", [(1,)], [(), (0,), (1, 2)]),
    (lambda **c: Scripted((2, 1), ends={7}, **c), "sentences", [1], [0]),
    (Boundary, "threshold", [0.0, 1.0], [-0.01, 1.01, NAN]),
    (Boundary, "longest", [1], [0]),
    (EntropySwitch, "dwell", [0], [-1]),
    (EntropySwitch, "longest", [1], [0]),
    (EntropySwitch, "max_blocks", [0], [-1]),
    (lambda **c: Budget(Speaking(), **c), "total", [None, 0], [-1]),
    (lambda **c: Budget(Speaking(), **c), "least", [0], [-1]),
    (lambda **c: Budget(Speaking(), least=2, **c), "most", [None, 2], [1, -1]),
    (lambda **c: Sampling("gumbel", **c), "temperature", [1e-9, 1e9], [0.0, -1.0, INF, NAN]),
    (lambda **c: Sampling("gumbel", **c), "top_k", [0, 1], [-1]),
    (lambda **c: Sampling("gumbel", **c), "top_p", [1e-9, 1.0], [0.0, 1.01, NAN]),
    (Sampling, "seed", [0], [-1]),
    (Sampling, "rule", ["greedy", "match", "rejection", "gumbel"], ["beam"]),
    (Sampling, "temperature", [1.0], [0.5]),
    (Sampling, "top_k", [0], [1]),
    (Sampling, "top_p", [1.0], [0.5]),
    (halting.QHalt, "threshold", [-9.0, 0.0, 9.0], [INF, -INF, NAN]),
    (halting.ArgmaxStable, "times", [1], [0]),
    (halting.LatentChange, "threshold", [1e-9], [0.0, INF, NAN]),
    (halting.EntropyChange, "threshold", [1e-9], [0.0, INF, NAN]),
    (halting.KL, "threshold", [1e-9], [0.0, INF, NAN]),
    (halting.MinPKL, "threshold", [1e-9], [0.0, INF, NAN]),
    (halting.MinPKL, "min_p", [1e-9, 0.999], [0.0, 1.0, NAN]),
    (halting.Cosine, "threshold", [1e-9], [0.0, INF, NAN]),
    (halting.Recurrences, "num", [1], [0]),
]


@pytest.mark.parametrize(
    "make, name, good, bad",
    EDGES,
    ids=[f"{number}-{name}" for number, (_, name, _, _) in enumerate(EDGES)],
)
def test_the_last_good_value_is_taken_and_the_next_is_refused(make, name, good, bad):
    for value in good:
        assert getattr(make(**{name: value}), name) == value
    # the message names the setting, or what follows from it, or says the value
    told = name.replace("_", "[ _]") + "|head width|several blocks"
    for value in bad:
        with pytest.raises(ValueError, match=f"{told}|{re.escape(str(value))}"):
            make(**{name: value})


def test_layouts():
    conv = trm(mixer="conv", prefix_len=1, grid=(3, 4))
    assert conv.layout(12) == (3, 4) and conv.layout(12, (2, 6)) == (2, 6)
    assert conv.layout(16) == (4, 4) and conv.layout(15) == (1, 15)
    assert trm(seq_len=9).layout(9) == (3, 3)
    cube = trm(mixer="cube", seq_len=16)
    assert cube.layout(81) == (9, 9) and (cube.tokens(81), trm().tokens(81)) == (11, 11)
    assert (cube.tokens(16), cube.tokens(36)) == (6, 8)
    for settings, wrong in (
        (trm(), (16, None)),
        (conv, (12, (4, 4))),
        (cube, (16, (2, 8))),
        (cube, (12, None)),
    ):
        with pytest.raises(ValueError, match=r"cells|square grid"):
            settings.layout(*wrong)


def test_cycles_follow_their_schedule_from_its_step_on():
    plain, one = trm(T=3, n=6), trm(latents=1, answer_update=False)
    assert plain.cycles(0) == plain.cycles(None) == (3, 6)
    assert (plain.evaluations(6), one.evaluations(6)) == (7, 6)
    scheduled = trm(cycle_schedule=((2, 1, 1), (5, 2, 3)))
    found = [scheduled.cycles(step) for step in (1, 2, 4, 5, 9, None)]
    assert found == [(3, 6), (1, 1), (1, 1), (2, 3), (2, 3), (3, 6)]


# --- what others published ------------------------------------------------------------------------


def test_defaults_are_the_published_ones():
    """TRM: config/arch/trm.yaml of the released code; Huginn: config.json of huginn-0125 and
    sections 3.3 and 4.1, its halting rules section 6.1; SwiReasoning's window of 512."""
    found = asdict(TRMSettings())
    want = {"hidden_size": 512, "num_layers": 2, "num_heads": 8, "expansion": 4.0, "T": 3, "n": 6}
    want |= {"n_sup": 16, "exploration": 0.1, "halt_weight": 0.5, "prefix_len": 16}
    want |= {"norm_eps": 1e-5, "rope_theta": 10000.0, "loss": "stablemax", "swiglu_multiple": 256}
    want |= {"supervision": "carry", "gradient": "last_cycle", "latents": 2, "answer_update": True}
    want |= {"label_smoothing": 0.0, "mask_padding": False, "vocab_size": 11, "seq_len": 81}
    assert {name: found[name] for name in want} == want
    config = HuginnConfig()
    want = {"n_embd": 5280, "n_heads": 55, "num_key_value_heads": 55, "intermediate_size": 17920}
    want |= {"vocab_size": 65536, "block_size": 4096, "n_layers_in_prelude": 2, "n_layers": 8}
    want |= {"n_layers_in_recurrent_block": 4, "n_layers_in_coda": 2, "mean_recurrence": 32}
    want |= {"mean_backprop_depth": 8, "norm_eps": 1e-6, "rope_base": 50_000, "head_dim": 96}
    want |= {"effective_expected_depth": 132, "tie_embeddings": True, "state_init": "like-init"}
    want |= {"padding_multiple": 4096, "layers": (2, 4, 2)}
    assert {name: getattr(config, name) for name in want} == want
    assert config.init_std == pytest.approx(math.sqrt(2 / (5 * 5280)))
    assert config.init_std_out == pytest.approx(math.sqrt(2 / (5 * 5280)) / math.sqrt(2 * 132))
    made = HuginnSettings().config(vocab_size=65536, block_size=4096, depth=Depth())
    assert made.to_dict() == config.to_dict()
    assert asdict(Depth()) == {
        "mean": 32, "backprop": 8, "sampling": "step", "sigma": 0.5, "ramp": 0, "longest": 0.0
    }  # fmt: skip
    assert asdict(EntropySwitch())["dwell"] == 512
    assert (halting.EntropyChange().threshold, halting.KL().threshold) == (1e-3, 5e-4)


def test_defaults_change_nothing():
    """What is off until somebody asks for it."""
    assert asdict(Sampling()) == {
        "rule": "greedy", "temperature": 1.0, "top_k": 0, "top_p": 1.0, "processors": (), "seed": 0
    }  # fmt: skip
    assert Sampling().chain == ()
    assert asdict(CoconutSettings()) == {
        "feedback": "none", "feedback_width": None, "seed": 0, "distill": 0.0,
        "step_decoder": 0.0, "thoughts_per_step": 1, "alarms": False, "superpose": 0.0, "span": 4,
        "superpose_weight": 1.0, "thought_steps": 0, "word_steps": 0,
    }  # fmt: skip
    tidar = TiDARSettings()
    assert (tidar.alpha, tidar.decay, tidar.distill, tidar.shifted) == (1.0, 1.0, 0.0, False)
    assert (tidar.block_size, tidar.lead, tidar.num_masks, tidar.max_logits) == (8, 1, 8, 2**25)
    shifted = TiDARSettings(shifted=True)
    assert (shifted.lead, shifted.num_masks) == (0, 7)


def test_functions_do_what_the_doors_say_of_them_without_being_told():
    from inward.methods.coconut import door as coconut
    from inward.methods.coconut.work import CoconutLanes
    from inward.methods.huginn import door as huginn
    from inward.methods.huginn import generate, parallel, speculate
    from inward.methods.huginn.loop import HuginnLoop
    from inward.methods.huginn.work import begin as huginn_begin
    from inward.methods.tidar import door as tidar
    from inward.methods.tidar import hf_generate
    from inward.methods.tidar.decoder import Decoder
    from inward.methods.tidar.work import begin as tidar_begin
    from inward.methods.trm import door as trm
    from inward.methods.trm.solve import solve

    def defaults(function: Callable[..., Any]) -> dict[str, Any]:
        known = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in known if p.default is not p.empty}

    other = {
        "state_seed",
        "halt",
        "sharing",
    }  # a function seeds itself; a wave has rules of its own
    for method, function, apart in (
        (huginn.METHOD, generate.generate, {"state_seed"}),
        (huginn.METHOD, speculate.generate_speculatively, {"state_seed"}),
        (huginn.METHOD, parallel.generate_in_parallel, other),
        (tidar.METHOD, hf_generate.generate, set()),
        (trm.METHOD, solve, set()),
    ):
        found = defaults(function)
        shared = (found.keys() & method.options.keys()) - apart
        assert len(shared) >= 3
        for name in shared:
            assert found[name] == method.options[name].default, (function.__name__, name)
    for size, functions in (
        (16, (huginn.METHOD.begin, huginn_begin, HuginnLoop, generate.generate)),
        (32, (tidar.METHOD.begin, tidar.PLAIN.begin, tidar_begin, Decoder)),
        (32, (coconut.METHOD.begin, CoconutLanes)),
        (256, (trm.METHOD.begin, solve)),
    ):
        assert {defaults(function)["batch_size"] for function in functions} == {size}


# --- depth and monitors of Huginn's training ------------------------------------------------------


def test_the_mean_depth_grows_in_a_line_from_one():
    depth = Depth(mean=33, ramp=8)
    assert [depth.at(step) for step in (0, 1, 4, 7, 8, 99)] == [1, 5, 17, 29, 33, 33]
    assert Depth(mean=5).at(0) == 5


def test_the_watch_looks_every_so_often_and_acts_beyond_its_limits_after_a_while():
    watch = Watch(action="stop", every=3, after=2)
    assert [step for step in range(8) if watch.looks_at(step)] == [0, 3, 6]
    assert not any(Watch(action="off").looks_at(step) for step in range(200))
    good = {"correlation": 0.98, "first_change": 1e-3, "path": 0.5}
    watch.check(2, good)  # at a limit is not beyond it
    for name, value in (("correlation", 0.981), ("first_change", 0.99e-3), ("path", 0.501)):
        watch.check(1, good | {name: value})
        with pytest.raises(CollapseError, match=f"step 3: {name} of the states is"):
            watch.check(2, good | {name: value})
        with pytest.warns(UserWarning, match=f"step 3: {name}"):
            Watch(after=2).check(2, good | {name: value})


def test_switches_bound_their_thoughts():
    """Budget over a switch that always thinks, and the entropy switch at its limits."""
    from types import SimpleNamespace

    def view(thinking: list[bool], run: list[int], **more: Any) -> Any:
        found = {"thinking": torch.tensor(thinking), "run": torch.tensor(run)}
        return SimpleNamespace(**found, **{k: torch.tensor(v) for k, v in more.items()})

    def always(seen: Any) -> torch.Tensor:
        return torch.ones_like(seen.thinking)

    def never(seen: Any) -> torch.Tensor:
        return torch.zeros_like(seen.thinking)

    rows = view([True, True, True, False], [1, 2, 3, 3], thoughts=[1, 4, 5, 5])
    assert Budget(never, least=2)(rows).tolist() == [True, False, False, False]
    assert Budget(always, most=3)(rows).tolist() == [True, True, False, True]
    assert Budget(always, total=5)(rows).tolist() == [True, True, False, False]
    entropy = EntropySwitch(dwell=2, longest=3, max_blocks=2)
    speaking = view([False] * 5, [0, 2, 1, 2, 2], blocks=[0, 1, 1, 1, 2],
                    entropy=[0.0, 2.0, 2.0, 1.0, 2.0], reference=[1.0] * 5)  # fmt: skip
    assert entropy(speaking).tolist() == [True, True, False, False, False]
    thinking = view([True] * 4, [2, 3, 2, 2], blocks=[1] * 4,
                    entropy=[1.0, 1.0, 0.9, 1.1], reference=[1.0] * 4)  # fmt: skip
    assert entropy(thinking).tolist() == [True, False, False, True]
