"""Blocks with a mask less (`shifted`): what they learn, what they draft, and that words stay."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from inward.common.draws import Draws
from inward.common.sampling import Sampler, Sampling
from inward.common.thinking import Request
from inward.methods.tidar import masks
from inward.methods.tidar.acceptance import acceptance
from inward.methods.tidar.choose import Chooser, speed
from inward.methods.tidar.decode import Decoded, decode
from inward.methods.tidar.door import METHOD
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.samples import Part, targets, training_rows
from inward.methods.tidar.schemes import Acceptance, Costs, Scheme
from inward.methods.tidar.settings import TiDARSettings
from tests.acting import acting
from tests.methods.tidar import toys as toys
from tests.methods.tidar.test_adapter import shaken
from tests.methods.tidar.test_decode import CHEAP, VERIFYING
from tests.methods.tidar.test_model import CONFIGS, MASK, V, batch_of, tiny, tokens

K = 3
SHIFTED = TiDARSettings(block_size=K, shifted=True, grid="fixed", align_answers=False)


def alone(tidar: TiDAR, ids: Tensor, start: int, width: int) -> Tensor:
    """(width, V) logits of a block of masks behind the first `start` tokens of a text (1, S), in a
    forward of its own."""
    rows = masks.prefill(start, width)
    own = torch.cat([ids[:, :start], ids.new_full((1, width), tidar.mask_id)], dim=1)
    mask = masks.dense(masks.sees(rows), start + width)
    with torch.no_grad():
        found = tidar(own, position_ids=rows.position, attention_mask=mask, use_cache=False)
    return found.logits[0, start:]


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("adapted", (False, True))
def test_every_mask_learns_the_token_after_its_place(kind, adapted):
    """The loss, against blocks that run alone: K - 1 masks, each with the next token."""
    base = tiny(kind)
    adapter = shaken(base) if adapted else None
    tidar = TiDAR(base, V if adapted else MASK, SHIFTED, adapter=adapter)
    ids, S = tokens(2, 8), 8
    found = tidar.loss(batch_of(ids), None, None)
    draft, ar, count = torch.zeros(()), torch.zeros(()), 0
    for text in ids[:, None]:
        for start in range(0, S, K - 1):
            for i, logits in enumerate(alone(tidar, text, start, min(K - 1, S - start))):
                if start + i + 1 < S:
                    draft += F.cross_entropy(logits, text[0, start + i + 1])
                    count += 1
        with torch.no_grad():
            said = tidar.model(text).logits[0]
        said[:, tidar.mask_id : tidar.mask_id + 1] = -torch.inf
        ar += F.cross_entropy(said[:-1], text[0, 1:], reduction="sum")
    assert int(found.metrics["draft_loss"][1]) == count == 14
    assert torch.allclose(found.metrics["draft_loss"][0], draft, rtol=1e-4)
    wanted = draft if adapted else (ar + draft) / 2
    assert torch.allclose(found.total.detach(), wanted, rtol=1e-4)


def test_both_ways_of_an_adapters_loss_agree_where_texts_are_packed():
    """Documents, padding and questions: the cached prefix against the doubled sequence."""
    base = tiny()
    settings = replace(SHIFTED, block_size=4, grid="random", decay=0.7)
    tidar = TiDAR(base, V, settings, adapter=shaken(base))
    ids = tokens(3, 12)
    documents = torch.tensor([[0] * 7 + [1] * 5, [0] * 12, [0] * 9 + [-1] * 3])
    asked = torch.ones(3, 12, dtype=torch.bool)
    asked[:, :3] = False
    batch = batch_of(ids, documents=documents, supervised=asked)
    draws = Draws(0, 0, range(3), 3)
    found = tidar.loss(batch, None, draws)
    rows = training_rows(batch, settings, Draws(0, 0, range(3), 3))
    assert len(set(rows.block[1, 12:].tolist())) >= 4, "blocks of three masks"
    wanted = targets(batch, rows)
    logits = tidar.logits(Part(ids, wanted, rows)).detach()[:, 12:]
    total, ratio = torch.zeros(()), settings.decay
    mean = sum(ratio**j for j in range(3)) / 3
    for b in range(3):
        for i in range(11):
            if int(wanted[b, i + 1]) >= 0:
                place = int(rows.position[b, 12 + i] - rows.horizon[b, 12 + i])
                term = F.cross_entropy(logits[b, i], wanted[b, i + 1])
                total += ratio**place / mean * term
    assert torch.allclose(found.total.detach(), total, rtol=1e-4)


def test_distillation_asks_the_clean_row_beside_the_mask():
    base = tiny()
    tidar = TiDAR(base, V, replace(SHIFTED, distill=1.0), adapter=shaken(base))
    ids = tokens(2, 7)
    found = float(tidar.loss(batch_of(ids), None, None).total.detach())
    rows = training_rows(batch_of(ids), SHIFTED, None)
    logits = tidar.logits(Part(ids, ids, rows)).detach().log_softmax(-1)
    said, drafted = logits[:, :6], logits[:, 7:13]
    divergence = (said.exp() * (said - drafted)).sum()
    assert found == pytest.approx(float(divergence), rel=1e-4)


def test_acceptance_counts_what_a_step_commits():
    tidar = TiDAR(tiny(), MASK, SHIFTED)
    B, S, M = 60, 9, K - 1
    ids = tokens(B, S)
    found = acceptance(tidar, batch_of(ids))
    accepted = first = count = 0
    for text in ids[:, None]:
        with torch.no_grad():
            said = tidar(
                text,
                position_ids=torch.arange(S)[None],
                attention_mask=torch.ones(S, S, dtype=torch.bool).tril()[None, None],
            ).logits[0]
        words = said.argmax(-1)
        for start in range(M, S - M, M):  # not the first, which has no word before it
            drafts = alone(tidar, text, start, M).argmax(-1)
            same = [bool(drafts[i] == words[start + i]) for i in range(M)]
            accepted += 1 + (0 if not same[0] else 2 if same[1] else 1)
            first, count = first + same[0], count + 1
    assert {name: (int(n), int(c)) for name, (n, c) in found.items()} == {
        "accepted": (accepted, count),
        "first": (first, count),
    }
    assert count < accepted and first, "nothing to count: take another seed"


# --- decoding -------------------------------------------------------------------------------------


class Ahead(toys.Leaning):
    """Mask rows lean towards the token after their place, as clean rows do."""

    ahead = True


@pytest.fixture(scope="module")
def leaning() -> Any:
    return toys.llama(Ahead)


def run(model: Any, ids: Tensor, **settings: Any) -> Decoded:
    tidar = TiDAR(model, toys.MASK, TiDARSettings(block_size=8, shifted=True)).eval()
    settings = {"K": 4, "max_new_tokens": 40, "costs": CHEAP, **settings}
    return decode(tidar, ids, **acting(METHOD, tidar, Request(None, own=settings)).own)


@pytest.mark.parametrize("scheme", ("plain", *VERIFYING, "auto"))
@pytest.mark.parametrize("size", (1, 2, 3, 5, 8))
def test_words_are_those_of_plain_decoding(leaning, scheme, size):
    ids = toys.prompts(1, 5)
    found = run(leaning, ids, scheme=scheme, K=size)
    assert found.tokens == [toys.slow(leaning, ids[0].tolist(), 40)]
    assert size == 1 or scheme != "one_pass" or found.num_forwards < 32, "no draft stood"


def test_a_step_commits_as_many_as_with_a_mask_more(leaning):
    """The same drafts in fewer rows: the lean of this toy is all that a draft knows."""
    ids = toys.prompts(1, 5)
    model = toys.llama(Ahead)
    model.lean = 1000.0  # no weight counts but the lean
    lean = run(model, ids, scheme="one_pass")
    usual = toys.llama(toys.Leaning)
    usual.lean = 1000.0
    full = decode(usual, ids, mask_id=toys.MASK, K=4, max_new_tokens=40, scheme="one_pass")
    assert lean.tokens == full.tokens
    assert lean.num_forwards == full.num_forwards == 11

    def slots(found: Decoded) -> list[int]:
        return [int(step.scores["slots"]) for step in found.traces[0].steps[1:-2]]

    assert slots(lean) == [4 + 4 * 3] * 8
    assert slots(full) == [4 + 4 * 4] * 8


def test_drafts_are_those_of_training(leaning):
    """What stands behind the first forward's word is what the block alone says there."""
    ids = toys.prompts(1, 9)
    tidar = TiDAR(leaning, toys.MASK, TiDARSettings(block_size=5, shifted=True)).eval()
    events = []
    decode(tidar, ids, scheme="one_pass", max_new_tokens=12, on_event=events.append)
    wanted = alone(tidar, ids, 9, 4).argmax(-1).tolist()
    assert [event.kind for event in events[:2]] == ["word", "draft"]
    assert list(events[1].tokens) == wanted and len(set(wanted)) > 1


def test_the_context_and_the_limit_cut_blocks(leaning):
    ids = toys.prompts(1, toys.CONTEXT - 9)
    wanted = toys.slow(leaning, ids[0].tolist(), 9)
    for scheme in VERIFYING:
        for size in (2, 3, 8, 20):
            for num in (1, 2, 3, 7, None):
                found = run(leaning, ids, scheme=scheme, K=size, max_new_tokens=num)
                assert found.tokens == [wanted[:num]]


@pytest.mark.parametrize("scheme", VERIFYING)
@pytest.mark.parametrize("rule", ("match", "gumbel"))
def test_sampled_text_is_that_of_plain_decoding(leaning, scheme, rule):
    ids = toys.prompts(1, 5)
    sampling = Sampling(rule, temperature=0.8, top_k=12, seed=3)
    sampler = Sampler(sampling, banned=[toys.MASK])

    def choose(text: list[int], logits: Tensor) -> int:
        return sampler.draw(sampler.scores(text, logits), len(text))

    wanted = toys.slow(leaning, ids[0].tolist(), 30, choose=choose)
    found = run(leaning, ids, scheme=scheme, sampling=sampling, max_new_tokens=30)
    assert found.tokens == [wanted]


def test_texts_of_a_batch_stay_apart(leaning):
    ids = toys.prompts(4, 6)
    for scheme in VERIFYING:
        batch = run(leaning, ids, scheme=scheme, sampling=Sampling("rejection", seed=8))
        for b in range(4):
            sampling = Sampling("rejection", seed=8 + b)
            single = run(leaning, ids[b : b + 1], scheme=scheme, sampling=sampling)
            assert batch.tokens[b] == single.tokens[0]


def test_the_chooser_counts_a_mask_less_for_each_block(leaning):
    costs = Costs((1, 100), (1.0, 100.0))  # a row, a second
    acceptance, scheme = Acceptance(prior=0.5), Scheme("one_pass", 4)
    lean, full = (speed(scheme, costs, acceptance, lead) for lead in (0, 1))
    assert lean / full == pytest.approx((4 + 4 * 4) / (4 + 4 * 3))
    chooser = Chooser(CHEAP, 4)
    run(leaning, toys.prompts(1, 5), scheme="auto", chooser=chooser)
    assert chooser.lead == 0
    decode(leaning, toys.prompts(1, 5), mask_id=toys.MASK, scheme="auto", chooser=chooser, K=4)
    assert chooser.lead == 1


# --- files and bad input --------------------------------------------------------------------------


def test_the_setting_comes_back_with_the_model(tmp_path):
    TiDAR(tiny(), MASK, SHIFTED).save_pretrained(tmp_path)
    assert TiDAR.from_pretrained(tmp_path).settings == SHIFTED


def test_what_needs_the_missing_mask_is_refused(leaning):
    ids = toys.prompts(1, 5)
    for wrong in ({"scheme": "one_pass", "beta": 0.5}, {"scheme": "diffusion"}):
        with pytest.raises(ValueError, match="shifted=True, has none"):
            run(leaning, ids, **wrong)
    with pytest.raises(ValueError, match="masking='full'"):
        TiDARSettings(shifted=True, masking="random")
    with pytest.raises(ValueError, match="block_size is 1, but must be 2 or more"):
        TiDARSettings(shifted=True, block_size=1)
