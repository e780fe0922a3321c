"""Coconut over Huginn with thoughts and words at depths of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inward.common.sampling import Sampling
from inward.common.thinking import Request, answers
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.methods.coconut.depths import passes_of
from inward.methods.coconut.door import METHOD
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.settings import CoconutSettings
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from tests.counted import counter
from tests.methods.tidar.toys import llama

V, SPECIALS, NONE = 31, Specials(bot=26, eot=27, latent=28), frozenset()
PROMPTS = (
    Sample((Text((5, 6, 7), False),)),
    Sample((Text((9, 26), False), Latent(2), Text((27, 3), False))),
)
PAIRS = [(5, 2), (1, 4), (3, 3)]


def coconut(**settings: Any) -> Coconut:
    torch.manual_seed(0)
    config = HuginnConfig(
        n_embd=16, n_heads=2, intermediate_size=24, n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2, n_layers_in_coda=1, vocab_size=V, block_size=64,
        mean_recurrence=3, mean_backprop_depth=2, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    base = HuginnForCausalLM(config).eval().double()
    for p in base.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return Coconut(base, SPECIALS, CoconutSettings(**settings)).eval()


@pytest.fixture(scope="module")
def model() -> Coconut:
    return coconut()


@torch.no_grad()
def slowly(
    model: Coconut, prompt: Sample, thoughts: int, depths: tuple[int, int], num: int
) -> list[int]:
    """One position at a time through Huginn's own cache: a block of thoughts, then words."""
    base: Any = model.base
    cache = RecurrentCache()
    hidden = torch.zeros(0)
    logits = torch.zeros(0)

    def feed(embedding: Tensor, depth: int) -> None:
        nonlocal hidden, logits
        kept: list[Tensor] = []
        hook = base.lm_head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        out = base(inputs_embeds=embedding[None, None], cache=cache, num_steps=depth)
        hook.remove()
        hidden, logits = kept[0][0, -1], out.logits[0, -1]

    def word(token: int) -> None:
        feed(model.embedding(torch.tensor(token)), depths[1])

    for segment in prompt.segments:
        if isinstance(segment, Latent):
            for _ in range(len(segment)):
                feed(hidden, depths[0])
        else:
            for token in segment.ids:
                word(token)
    said = []
    if thoughts:
        said.append(SPECIALS.bot)
        word(SPECIALS.bot)
        for _ in range(thoughts):
            feed(hidden, depths[0])
        said.append(SPECIALS.eot)
        word(SPECIALS.eot)
    while len(said) < num:
        logits[[SPECIALS.bot, SPECIALS.eot, SPECIALS.latent]] = -torch.inf
        said.append(int(logits.argmax()))
        if len(said) < num:
            word(said[-1])
    return said


def asked(model: Coconut, prompts: Any, own: dict[str, Any], num: int = 9) -> list[Any]:
    given: dict[str, Any] = {"max_new_tokens": num, "sampling": Sampling(), "ends": NONE}
    requests = [Request(prompt, own={"packed": False, **own}, **given) for prompt in prompts]
    return answers(METHOD.begin(model), requests)


@pytest.mark.parametrize("depths", PAIRS)
def test_answers_are_those_of_one_position_at_a_time(model, depths):
    own = {"thoughts": (3,)}
    own |= {"per_thought": {"num_steps": depths[0]}, "per_word": {"num_steps": depths[1]}}
    want = [  # a prompt that has thought already does not begin again
        slowly(model, prompt, thoughts, depths, 9)
        for prompt, thoughts in zip(PROMPTS, (3, 0), strict=True)
    ]
    alone = [asked(model, [prompt], own)[0] for prompt in PROMPTS]
    together = asked(model, PROMPTS, own)
    assert [list(a.tokens) for a in alone] == want
    assert [list(a.tokens) for a in together] == want


def test_depth_of_thoughts_alone_changes_what_is_said(model):
    said = {
        n: asked(model, PROMPTS[:1], {"thoughts": (3,), "per_thought": {"num_steps": n}})[0].tokens
        for n in (1, 3, 8)
    }
    usual = asked(model, PROMPTS[:1], {"thoughts": (3,)})[0].tokens
    assert said[3] == usual and len({*said.values()}) > 1


@pytest.mark.parametrize("depths", PAIRS)
@pytest.mark.parametrize("prompt", [0, 1])
def test_the_account_is_what_torch_counts(model, depths, prompt):
    own = {"thoughts": (2,)}
    own |= {"per_thought": {"num_steps": depths[0]}, "per_word": {"num_steps": depths[1]}}
    asked(model, PROMPTS[prompt : prompt + 1], own)
    with counter() as found:
        (answer,) = asked(model, PROMPTS[prompt : prompt + 1], own)
    assert answer.cost.flops == found.get_total_flops()


SAMPLES = [
    Sample((Text((5, 6, 26), False), Latent(2), Text((27,), False), Text((7, 8), True))),
    Sample((Text((9, 26), False), Latent(1), Text((27, 10, 26), True), Latent(1),
            Text((27, 11), True))),
]  # fmt: skip


@pytest.mark.parametrize("depths", [(5, 2), (1, 4)])
def test_training_is_the_same_without_a_cache_gradients_too(depths):
    model = coconut(thought_steps=depths[0], word_steps=depths[1])
    batch = model.collate(SAMPLES)
    found = []
    for executor in ("sequential", "recompute"):
        model.zero_grad()
        output = model.forward(batch, executor=executor)
        output.total.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((output.total.detach(), grads))
    (one, first), (two, second) = found
    assert (one - two).abs() < 1e-10 and len(first) == len(second)
    for a, b in zip(first, second, strict=True):  # the loss itself is computed in float32
        assert (a - b).abs().max() < 1e-5 * a.abs().max()
    given = coconut()
    per_pass = passes_of(given, batch, {"num_steps": depths[0]}, {"num_steps": depths[1]})
    assert torch.allclose(given.forward(batch, per_pass=per_pass).total, one, atol=1e-10)
    assert not torch.allclose(given.forward(batch).total, one, atol=1e-6)
    loss = model.loss(batch)
    assert torch.allclose(loss.total, one, atol=1e-10)


def test_a_row_is_the_same_alone_and_padded():
    model = coconut(thought_steps=6, word_steps=2)
    together = model.forward(model.collate(SAMPLES)).row_loss
    alone = [model.forward(model.collate([sample])).total for sample in SAMPLES]
    assert torch.allclose(together, torch.stack(alone), atol=1e-10)


def test_what_no_base_takes_is_refused(model):
    for own, told in (
        ({"per_thought": {"num_steps": 0}}, "whole number from 1"),
        ({"per_word": {"depth": 2}}, "takes num_steps"),
        ({"per_word": 3}, "whole numbers by name"),
    ):
        with pytest.raises(ValueError, match=told):
            asked(model, PROMPTS[:1], {"thoughts": (2,), **own})
    plain = Coconut(llama(), SPECIALS)
    with pytest.raises(ValueError, match="takes nothing for each position"):
        asked(plain, PROMPTS[:1], {"per_word": {"num_steps": 2}})
