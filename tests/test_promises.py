"""What every method promises, asked of all of them with one list: this file is the interface.

A loss that sums over rows and is the same for the same draws, gradients, a folder that `hub.load`
reads back to the same numbers, and use that leaves one trace per sample with its cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inward.common.draws import Draws
from inward.common.trace import Trace
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.hub import load
from inward.methods.coconut.generate import generate as generate_thoughts
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.generate import generate as generate_deep
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.decode import decode
from inward.methods.tidar.model import TiDAR
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from tests.methods.tidar.toys import MASK, llama

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
SPECIALS = Specials(bot=26, eot=27, latent=28)
PROMPT = Sample((Text((5, 6, 26), False), Latent(2), Text((27,), False)))
SAMPLES = [
    Sample((*PROMPT.segments, Text((7, 8), True))),
    Sample(
        (Text((9, 26), False), Latent(1), Text((27, 10, 26), True), Latent(1), Text((27, 11), True))
    ),
]


@dataclass(frozen=True)
class Method:
    """A small model, a batch for its loss, what `use` says and the traces it leaves."""

    build: Callable[[], Any]
    batch: Callable[[Any], dict[str, torch.Tensor]]
    use: Callable[[Any], tuple[list[list[int]], list[Trace]]]


def _trm() -> TRM:
    settings = TRMSettings(
        vocab_size=6, seq_len=16, hidden_size=16, swiglu_multiple=16, prefix_len=1,
        num_identifiers=0, T=1, n=1, n_sup=3,
    )  # fmt: skip
    return TRM(settings).eval()


def _puzzles(_: Any) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    cells = [torch.randint(1, 6, (2, 16), generator=g) for _ in range(2)]
    return {"inputs": cells[0], "labels": cells[1]}


def _solve(model: TRM) -> tuple[list[list[int]], list[Trace]]:
    found = model.solve(_puzzles(model)["inputs"], trace=True)
    assert found.traces is not None
    return found.answers.tolist(), found.traces


def _huginn() -> HuginnForCausalLM:
    config = HuginnConfig(
        n_embd=16, n_heads=2, intermediate_size=24, n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1, n_layers_in_coda=1, vocab_size=31, block_size=32,
        mean_recurrence=3, mean_backprop_depth=2,
    )  # fmt: skip
    return HuginnForCausalLM(config).eval()


def _think(model: HuginnForCausalLM) -> tuple[list[list[int]], list[Trace]]:
    made = generate_deep(model, IDS, max_new_tokens=3, eos_token_id=(), trace="tokens")
    assert made.traces is not None
    return made.answers, made.traces


def _imagine(model: Coconut) -> tuple[list[list[int]], list[Trace]]:
    made = generate_thoughts(model, [PROMPT, PROMPT], max_new_tokens=3, trace=True)
    return made.tokens, made.traces


def _draft(model: TiDAR) -> tuple[list[list[int]], list[Trace]]:
    made = decode(model, IDS, max_new_tokens=5)
    return made.tokens, made.traces


METHODS = {
    "trm": Method(_trm, _puzzles, _solve),
    "huginn": Method(_huginn, lambda _: {"input_ids": IDS, "labels": IDS}, _think),
    "coconut": Method(
        lambda: Coconut(llama(), SPECIALS), lambda model: model.collate(SAMPLES), _imagine
    ),
    "tidar": Method(
        lambda: TiDAR(llama(), MASK, 3),
        lambda _: {"input_ids": IDS, "weight": torch.tensor(20.0)},
        _draft,
    ),
}


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return METHODS[request.param]


def made(method: Method) -> Any:
    torch.manual_seed(0)
    return method.build().eval()


def loss_of(model: Any, method: Method, step: int = 0) -> Any:
    return model.loss(method.batch(model), None, Draws(0, step, range(2), 2))


def test_the_loss_is_a_sum_with_gradients_and_the_same_for_the_same_draws(method):
    model = made(method)
    first, again = loss_of(model, method), loss_of(model, method)
    assert first.total.ndim == 0 and float(first.total.detach()) > 0
    assert torch.equal(first.total, again.total)
    assert first.metrics and all(len(pair) == 2 for pair in first.metrics.values())
    first.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)
    assert any(float(g.abs().max()) > 0 for g in grads)


def test_a_folder_comes_back_as_the_same_model(method, tmp_path):
    model = made(method)
    model.save_pretrained(tmp_path / "model")
    back = load(tmp_path / "model")
    assert type(back) is type(model) and not back.training
    assert torch.equal(loss_of(model, method).total, loss_of(back, method).total)
    assert method.use(back)[0] == method.use(model)[0]


def test_use_says_the_same_twice_and_leaves_a_trace_per_sample(method):
    model = made(method)
    said, traces = method.use(model)
    assert said == method.use(model)[0] and len(said) == len(traces) == 2
    for trace in traces:
        assert trace.steps and trace.stopped and trace.cost.flops > 0
        assert trace.cost.evaluations >= 1
        assert Trace.from_dict(trace.to_dict()).to_dict() == trace.to_dict()
