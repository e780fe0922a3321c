"""TiDAR over Huginn with depths of their own: mask rows think less (or more) than the words, and
the text is that of plain decoding at the verifying depth."""

import copy
from typing import Any

import pytest
import torch

from inward.common.sampling import Sampling
from inward.common.thinking import Memory, Request, answers
from inward.methods.huginn.cache import RecurrentCache
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.door import METHOD
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import AdapterSettings, TiDARSettings
from tests.counted import counter
from tests.methods.tidar.toys import llama

V, MASK, NONE = 31, 30, frozenset()
PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7])


@pytest.fixture(scope="module")
def model() -> TiDAR:
    torch.manual_seed(0)
    config = HuginnConfig(
        n_embd=16, n_heads=2, intermediate_size=24, n_layers_in_prelude=1,
        n_layers_in_recurrent_block=2, n_layers_in_coda=1, vocab_size=V, block_size=64,
        mean_recurrence=3, mean_backprop_depth=2, bos_token_id=None, eos_token_id=None,
        pad_token_id=None,
    )  # fmt: skip
    base = HuginnForCausalLM(config).eval()
    for p in base.parameters():  # else one token after another is the same
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return TiDAR(base, MASK, 4).eval()


def asked(model: TiDAR, own: dict[str, Any], **more: Any) -> list[tuple[int, ...]]:
    given: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(), "ends": NONE} | more
    own = {"packed": False, **own}
    requests = [Request(prompt, own=own, **given) for prompt in PROMPTS]
    return [answer.tokens for answer in answers(METHOD.begin(model), requests)]


@torch.no_grad()
def plainly(model: TiDAR, prompt: list[int], depth: int, num: int = 12) -> tuple[int, ...]:
    """Huginn alone, token by token, through its own cache."""
    cache, new, said = RecurrentCache(), prompt, []
    for _ in range(num):
        out = model.model(torch.tensor([new]), cache=cache, num_steps=depth)
        logits = model.ban(out.logits)[0, -1]
        said.append(int(logits.argmax()))
        new = said[-1:]
    return tuple(said)


@pytest.mark.parametrize("verify", [1, 3, 5])
@pytest.mark.parametrize("scheme", ["plain", "two_pass", "one_pass", "partial"])
def test_the_text_is_plain_decodings_at_the_verifying_depth(model, scheme, verify):
    want = [plainly(model, prompt, verify) for prompt in PROMPTS]
    assert len(set(want)) == 3 and len({token for tokens in want for token in tokens}) > 4
    for draft in (1, 2, 7) if scheme != "plain" else (None,):
        own: dict[str, Any] = {"scheme": scheme, "verify": {"num_steps": verify}}
        if draft is not None:
            own["draft"] = {"num_steps": draft}
        assert asked(model, own) == want, (scheme, verify, draft)


@pytest.mark.parametrize(("verify", "draft"), [(4, 2), (2, 5), (5, 1)])
def test_an_adapter_acts_on_its_own_rows_at_any_depth(model, verify, draft):
    """Words stay those of the bare model; drafts are those of the adapter, whatever else runs."""
    base = copy.deepcopy(model.model)
    adapter = DraftAdapter(base, AdapterSettings(rank=4))
    settings = TiDARSettings(block_size=4, steps=verify, draft_steps=draft)
    adapted = TiDAR(base, V, settings, adapter=adapter).eval()
    torch.manual_seed(1)
    for p in adapter.parameters():
        torch.nn.init.normal_(p, std=0.5)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, V, V], [2, 6, 5, 3, 5, V, V, V]])
    masked = ids == V
    sees = torch.ones(8, 8).tril().bool()[None, None]
    given: dict[str, Any] = {"position_ids": torch.arange(8)[None], "attention_mask": sees}
    with torch.no_grad():
        both = adapted(ids, **given, **adapted.depths(masked)).logits
        bare = model.model(ids[:, :5], num_steps=verify).logits
        # the same with a depth that lets nobody stop before the others, where it is the same
        slow = [adapted(ids[b : b + 1], **given, **adapted.depths(masked[b : b + 1])).logits
                for b in range(2)]  # fmt: skip
    assert torch.allclose(both[:, :5], bare, atol=1e-5)
    assert torch.allclose(both, torch.cat(slow), atol=1e-5)
    want = [plainly(adapted, prompt, verify) for prompt in PROMPTS]
    for scheme in ("two_pass", "one_pass"):
        assert asked(adapted, {"scheme": scheme}) == want


def test_depths_of_the_verifier_say_other_things(model):
    assert plainly(model, PROMPTS[0], 1) != plainly(model, PROMPTS[0], 5)


@pytest.mark.parametrize("rule", ["gumbel", "match"])
def test_drawn_text_is_plain_decodings_by_seed(model, rule):
    sampling = Sampling(rule, temperature=0.9, seed=5)
    want = asked(model, {"scheme": "plain", "verify": {"num_steps": 4}}, sampling=sampling)
    for scheme, draft in (("two_pass", 1), ("one_pass", 2), ("partial", 6)):
        own = {"scheme": scheme, "verify": {"num_steps": 4}, "draft": {"num_steps": draft}}
        assert asked(model, own, sampling=sampling) == want


@pytest.mark.parametrize(("scheme", "verify", "draft"), [
    ("one_pass", 5, 1), ("two_pass", 5, 2), ("partial", 2, 5), ("diffusion", 4, 1),
])  # fmt: skip
def test_mask_rows_stop_early_and_the_account_says_so(model, scheme, verify, draft):
    own = {"packed": False, "scheme": scheme}
    own |= {"verify": {"num_steps": verify}, "draft": {"num_steps": draft}}
    request = Request(
        PROMPTS[0], max_new_tokens=9, sampling=Sampling(), ends=NONE, own=own, logprobs=False
    )
    work = METHOD.begin(model)
    with counter() as found:
        (answer,) = answers(work, [request])
    assert answer.cost.flops == found.get_total_flops()
    deep = {**own, "draft": {"num_steps": 9}}
    (dear,) = answers(METHOD.begin(model), [Request(**{**vars(request), "own": deep})])
    each = [a.cost.parts["drafting"].flops / a.steps for a in (answer, dear)]
    assert each[0] < 0.7 * each[1]


def test_a_conversation_remembers_at_its_depth(model):
    memory = Memory()
    own = {"scheme": "one_pass", "verify": {"num_steps": 4}, "draft": {"num_steps": 1}}
    more: dict[str, Any] = {"max_new_tokens": 6, "sampling": Sampling(), "ends": NONE}
    (first,) = answers(METHOD.begin(model), [Request(PROMPTS[0], own=own, memory=memory, **more)])
    longer = [*PROMPTS[0], *first.tokens, 7, 8]
    (second,) = answers(METHOD.begin(model), [Request(longer, own=own, memory=memory, **more)])
    assert second.details["reused"] > 5
    assert second.tokens == plainly(model, longer, 4, 6)
    other = {**own, "verify": {"num_steps": 2}}
    (third,) = answers(METHOD.begin(model), [Request(longer, own=other, memory=memory, **more)])
    assert third.details["reused"] == 0 and third.tokens == plainly(model, longer, 2, 6)


def test_a_model_trained_so_decodes_so(model, tmp_path):
    settings = TiDARSettings(block_size=4, steps=4, draft_steps=1)
    trained = TiDAR(model.model, MASK, settings).eval()
    assert asked(trained, {}) == [plainly(model, prompt, 4) for prompt in PROMPTS]
    assert asked(trained, {"options": {"num_steps": 2}}) == [
        plainly(model, prompt, 2) for prompt in PROMPTS
    ]
    trained.save_pretrained(tmp_path)
    assert TiDAR.from_pretrained(tmp_path).settings == settings


def test_what_no_model_takes_is_refused(model):
    for own, told in (
        ({"draft": {"num_steps": 0}}, "at least 1"),
        ({"verify": {"num_steps": 2.5}}, "whole numbers"),
        ({"verify": {"depth": 2}}, "takes num_steps"),
        ({"scheme": "plain", "draft": {"num_steps": 2}}, "would do nothing"),
    ):
        with pytest.raises(ValueError, match=told):
            asked(model, own)
    plain = TiDAR(llama(), MASK, 4)
    with pytest.raises(ValueError, match="takes nothing for each position"):
        asked(plain, {"draft": {"num_steps": 2}})
    with pytest.raises(ValueError, match="takes no depth for each position"):
        TiDAR(llama(), MASK, TiDARSettings(block_size=4, draft_steps=2))
