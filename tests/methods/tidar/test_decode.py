"""Draft and verify says what plain decoding says: token for token, or in distribution."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from inward.common.sampling import Sampler, Sampling
from inward.common.thinking import Event, Request
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.tidar import decoder as tidar_decode
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.base import add_mask_token
from inward.methods.tidar.decode import Decoded, decode, stream
from inward.methods.tidar.door import METHOD
from inward.methods.tidar.hf_generate import generate
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.request import PromptLookup
from inward.methods.tidar.schemes import Costs
from tests.acting import acting
from tests.common.test_sampling import p_value
from tests.methods.tidar.toys import (
    CONTEXT,
    MASK,
    Leaning,
    V,
    drafts,
    gpt2,
    granite,
    llama,
    prompts,
    record,
    slow,
    slow_diffusion,
    stories,
)

VERIFYING = ("two_pass", "one_pass", "partial")
CHEAP = Costs((1, 2, 100), (1.0, 1.05, 2.0))  # many rows are nearly free, so drafts pay


@pytest.fixture(scope="module")
def leaning() -> Any:
    return llama(Leaning)


@pytest.fixture(scope="module")
def plain_text(leaning) -> list[int]:
    return slow(leaning, prompts(1, 5)[0].tolist(), 40)


def run(model: Any, ids: Tensor, **settings: Any) -> Decoded:
    settings = {"mask_id": MASK, "K": 4, "max_new_tokens": 40, "costs": CHEAP, **settings}
    return decode(model, ids, **acting(METHOD, model, Request(None, own=settings)).own)


# --- greedy, beta = 1: the text of plain decoding -------------------------------------------------


@pytest.mark.parametrize("scheme", ("plain", *VERIFYING, "auto"))
@pytest.mark.parametrize("K", (1, 2, 3, 5, 8))
def test_greedy_is_plain_greedy(leaning, plain_text, scheme, K):
    found = run(leaning, prompts(1, 5), scheme=scheme, K=K)
    assert found.tokens == [plain_text]
    if scheme == "plain" or (K == 1 and scheme != "auto"):
        assert found.num_forwards == 40
    elif scheme == "one_pass":
        assert found.num_forwards < 32, "drafts that never stand prove nothing"
    assert found.traces[0].stopped == "length"


def test_drafts_of_every_length_were_accepted(leaning):
    found = run(leaning, prompts(6, 5), scheme="one_pass", K=4, max_new_tokens=50)
    accepted = {int(step.scores["accepted"]) for trace in found.traces for step in trace.steps}
    assert accepted == {0, 1, 2, 3}


@pytest.mark.parametrize("build", (llama, gpt2, granite), ids=lambda f: f.__name__)
@pytest.mark.parametrize("scheme", VERIFYING)
def test_any_model_and_any_draft_will_do(build, scheme):
    """Random weights draft badly; the text does not care. GPT-2 runs to the end of its context."""
    model = build()
    num = 19 if build is gpt2 else 30
    found = run(model, prompts(1, 5), scheme=scheme, K=4, max_new_tokens=num)
    assert found.tokens == [slow(model, prompts(1, 5)[0].tolist(), num)]


@pytest.mark.parametrize("scheme", VERIFYING)
def test_a_model_that_thinks_in_depth_drafts_as_well(scheme):
    """TiDAR(Huginn): no line of glue."""
    torch.manual_seed(0)
    config = HuginnConfig(
        vocab_size=V,
        n_embd=32,
        num_attention_heads=4,
        intermediate_size=48,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1,
        n_layers_in_coda=1,
        block_size=CONTEXT,
        mean_recurrence=3,
        mean_backprop_depth=2,
    )
    model: Any = HuginnForCausalLM(config).eval()
    options = {"num_steps": 3}
    wanted = model.generate(
        prompts(1, 5), max_new_tokens=20, do_sample=False, suppress_tokens=[MASK], **options
    )
    found = run(model, prompts(1, 5), scheme=scheme, options=options, max_new_tokens=20)
    assert found.tokens == [wanted[0, 5:].tolist()]


def test_eager_attention_says_the_same():
    ids = prompts(1, 5)
    wanted = slow(llama(), ids[0].tolist(), 20)
    eager = llama()
    eager.set_attn_implementation("eager")
    assert run(eager, ids, max_new_tokens=20).tokens == [wanted]


def test_decoding_ends_with_the_context(leaning):
    ids = prompts(1, CONTEXT - 9)
    wanted = slow(leaning, ids[0].tolist(), 9)
    for scheme, K in itertools.product(("plain", *VERIFYING), (3, 8, 20)):
        for num in (None, 500):
            found = run(leaning, ids, scheme=scheme, K=K, max_new_tokens=num)
            assert found.tokens == [wanted]
            assert found.traces[0].stopped == "context"


@pytest.mark.parametrize("num", (1, 2, 3, 7))
def test_length_limits_cut_inside_an_accepted_run(leaning, plain_text, num):
    for scheme in ("plain", *VERIFYING):
        found = run(leaning, prompts(1, 5), scheme=scheme, K=8, max_new_tokens=num)
        assert found.tokens == [plain_text[:num]]
    slots = [step.scores["slots"] for step in found.traces[0].steps]
    assert num > 2 or slots[0] == 5, "no block where nothing is left to guess"


def test_eos_cuts_inside_an_accepted_run(leaning, plain_text):
    for scheme in ("plain", *VERIFYING):
        for eos in sorted(set(plain_text))[::5]:
            found = run(leaning, prompts(1, 5), scheme=scheme, eos_token_id=eos)
            assert found.tokens == [plain_text[: plain_text.index(eos) + 1]]
            assert found.traces[0].stopped == "end"


def test_a_drafter_from_outside_changes_nothing(leaning, plain_text):
    def oracle(tokens, num):
        done = len(tokens) - 5
        return [] if done % 3 == 0 else plain_text[done : done + num]

    def liar(tokens, num):
        return [(t + 1) % MASK for t in plain_text[len(tokens) - 5 :][:num]]

    drafters = (oracle, liar, PromptLookup(1))
    for drafter, scheme in itertools.product(drafters, ("plain", "two_pass", "partial")):
        found = run(leaning, prompts(1, 5), scheme=scheme, drafter=drafter)
        assert found.tokens == [plain_text]
        assert drafter is not oracle or found.num_forwards < 25
    options = {"scheme": "plain", "mask_id": None}
    alone = run(leaning, prompts(1, 5), drafter=PromptLookup(1), **options)
    assert alone.tokens == run(leaning, prompts(1, 5), **options).tokens
    assert MASK in alone.tokens[0], "without a mask token its id is a token like any other"


def test_prompt_lookup_finds_the_latest_longest_match():
    text = [1, 2, 3, 4, 9, 2, 3, 5, 8, 1, 2, 3]
    assert list(PromptLookup(2, 5)(text, 3)) == [4, 9, 2]
    assert list(PromptLookup(2, 2)(text, 2)) == [5, 8]
    assert list(PromptLookup(4, 5)(text, 2)) == []
    assert list(PromptLookup(3, 5)([7], 2)) == []


# --- beta < 1: the text of the mixture ------------------------------------------------------------


@pytest.mark.parametrize("beta", (0.0, 0.5))
def test_mixed_logits_define_an_autoregressive_model(leaning, beta):
    ids = prompts(1, 6, seed=4)
    wanted = slow(leaning, ids[0].tolist(), CONTEXT - 6, beta=beta)
    assert wanted != slow(leaning, ids[0].tolist(), CONTEXT - 6)
    for scheme in ("plain", "one_pass"):
        found = run(leaning, ids, scheme=scheme, beta=beta, max_new_tokens=None)
        assert found.tokens == [wanted]
        cut = run(leaning, ids, scheme=scheme, beta=beta, max_new_tokens=11)
        assert cut.tokens == [wanted[:11]], "a limit changed the model"


# --- sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ("match", "gumbel"))
@pytest.mark.parametrize("scheme", ("plain", *VERIFYING, "auto"))
def test_sampled_text_is_a_function_of_the_seed(leaning, rule, scheme):
    ids = prompts(1, 5)
    sampling = Sampling(rule, temperature=0.8, top_k=12, top_p=0.95, seed=3)
    sampler = Sampler(sampling, banned=[MASK])

    def choose(text, logits):
        return sampler.draw(sampler.scores(text, logits), len(text))

    wanted = slow(leaning, ids[0].tolist(), 30, choose=choose)
    found = run(leaning, ids, scheme=scheme, sampling=sampling, max_new_tokens=30)
    assert found.tokens == [wanted]
    other = run(leaning, ids, sampling=Sampling(rule, seed=4), max_new_tokens=30)
    assert other.tokens != [wanted]


@pytest.mark.parametrize(
    "scheme, rule",
    [("one_pass", "rejection"), ("partial", "rejection"), ("two_pass", "gumbel")],
)
def test_sequences_of_three_tokens_follow_the_exact_law(scheme, rule):
    """All 6^3 texts of a tiny model, their probabilities multiplied out, against 1,200 samples."""
    model = llama(Leaning, initializer_range=0.2)
    model.lean = 2.0
    allowed, num = 6, 1200

    def top(ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, allowed:] = -torch.inf
        return scores

    texts = torch.tensor(list(itertools.product(range(allowed), repeat=3)))
    ids = torch.cat([torch.tensor([[3, 1]]).expand(len(texts), 2), texts], dim=1)
    with torch.no_grad():
        logits = model(ids).logits[:, 1:4, :allowed]
    steps = logits.double().softmax(-1).gather(-1, texts[..., None])[..., 0]
    expected = num * steps.prod(1)
    assert (expected > 5).sum() > 20, "too few likely texts"
    sampling = Sampling(rule, processors=(top,), seed=11)
    found = run(
        model,
        torch.tensor([[3, 1]] * num),
        scheme=scheme,
        K=3,
        num_blocks=1,
        sampling=sampling,
        max_new_tokens=3,
    )
    index = torch.tensor([36 * a + 6 * b + c for a, b, c in found.tokens])
    assert p_value(index.bincount(minlength=len(texts)), expected) > 1e-3
    stood = sum(step.scores["accepted"] for trace in found.traces for step in trace.steps)
    assert stood > 0.2 * num, "drafts that never stand prove nothing"


def test_rejection_accepts_more_than_matching(leaning):
    def stood(rule: Any) -> float:
        found = run(leaning, prompts(12, 5), scheme="one_pass", sampling=Sampling(rule, seed=5))
        return sum(found.tokens_per_forward)

    assert stood("rejection") > stood("match")


@pytest.mark.parametrize("scheme", VERIFYING)
def test_processors_are_applied_per_verified_place(leaning, scheme):
    ids = prompts(1, 5)
    processors = LogitsProcessorList(
        [NoRepeatNGramLogitsProcessor(2), RepetitionPenaltyLogitsProcessor(1.5)]
    )

    def choose(text, logits):
        return int(processors(torch.tensor([text]), logits[None].clone()).argmax())  # pyright: ignore

    wanted = slow(leaning, ids[0].tolist(), 40, choose=choose)
    assert wanted != slow(leaning, ids[0].tolist(), 40)
    found = run(leaning, ids, scheme=scheme, sampling=Sampling(processors=tuple(processors)))
    assert found.tokens == [wanted]
    assert found.num_forwards < 40


# --- ragged batches -------------------------------------------------------------------------------


def ragged(side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    singles = [prompts(1, length, seed=length) for length in (3, 11, 6, 1)]
    ids, keep = torch.zeros(4, 11, dtype=torch.long), torch.zeros(4, 11, dtype=torch.long)
    for b, single in enumerate(singles):
        place = slice(0, single.shape[1]) if side == "right" else slice(11 - single.shape[1], 11)
        ids[b, place], keep[b, place] = single[0], 1
    return ids, keep, singles


@pytest.mark.parametrize("scheme", ("plain", *VERIFYING, "diffusion"))
@pytest.mark.parametrize("rule", ("greedy", "gumbel", "rejection"))
def test_batched_is_single(leaning, scheme, rule):
    """Tokens, and also who drafted what and when: texts share nothing but the forward."""
    ids, keep, singles = ragged("right" if rule == "gumbel" else "left")
    settings = {"scheme": scheme, "eos_token_id": [2, 5, 17], "max_new_tokens": 30}
    sampling = Sampling(rule, seed=8)
    batch = run(leaning, ids, attention_mask=keep, sampling=sampling, **settings)
    for b, single in enumerate(singles):
        alone = run(leaning, single, sampling=Sampling(rule, seed=8 + b), **settings)
        assert batch.tokens[b] == alone.tokens[0]
        assert record(batch.traces[b]) == record(alone.traces[0])
    assert len({len(tokens) for tokens in batch.tokens}) > 1, "all texts ended at once"


def test_a_text_that_ends_leaves_the_batch(leaning):
    widths: list[int] = []
    handle = leaning.lm_head.register_forward_hook(lambda m, x, y: widths.append(y.shape[0]))
    ids, keep, _ = ragged("left")
    found = run(leaning, ids, attention_mask=keep, eos_token_id=[2, 5, 17], max_new_tokens=30)
    handle.remove()
    assert sum(widths) == sum(len(trace.steps) for trace in found.traces)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 4


# --- what a forward costs -------------------------------------------------------------------------


def test_the_head_runs_on_few_rows(monkeypatch):
    """On those that are used; or, where all that may be used are few, on these at once."""
    model, rows = llama(), []
    decode(model, prompts(1, 5), mask_id=MASK, max_new_tokens=2)  # probes
    model.lm_head.register_forward_hook(lambda m, x, y: rows.append(y.shape[:-1].numel()))
    options: dict[str, Any] = {"mask_id": MASK, "scheme": "one_pass", "K": 5}
    options["max_new_tokens"] = 40
    monkeypatch.setattr(tidar_decode, "READ_AHEAD", 0)
    found = decode(model, prompts(1, 20), **options)
    steps = found.traces[0].steps
    assert sum(rows) <= len(steps) * (5 + 4)
    assert max(rows) <= 5
    assert max(step.scores["slots"] for step in steps) == 5 + 25
    calls, rows[:] = len(rows), []
    monkeypatch.setattr(tidar_decode, "READ_AHEAD", 16)
    again = decode(model, prompts(1, 20), **options)
    assert again.tokens == found.tokens
    assert drafts(again.traces[0]) == drafts(found.traces[0])
    assert 5 < max(rows) <= 16 and len(rows) < calls


@pytest.mark.parametrize("beta", (1.0, 0.5))
def test_rows_read_ahead_are_all_that_is_read(leaning, beta, monkeypatch):
    monkeypatch.setattr(tidar_decode, "READ_AHEAD", 10_000)
    run(leaning, prompts(1, 5), max_new_tokens=2)  # probes
    calls = []
    handle = leaning.lm_head.register_forward_hook(lambda m, x, y: calls.append(1))
    found = run(leaning, prompts(2, 7), scheme="one_pass", beta=beta)
    handle.remove()
    assert len(calls) == found.num_forwards
    monkeypatch.setattr(tidar_decode, "READ_AHEAD", 0)
    assert run(leaning, prompts(2, 7), scheme="one_pass", beta=beta).tokens == found.tokens


def test_slots_are_what_the_schemes_promise(leaning):
    def slots(scheme: str, **settings: Any) -> set[int]:
        found = run(leaning, prompts(1, 5), scheme=scheme, K=4, **settings)
        early = found.traces[0].steps[1:-4]  # without the prompt, and the end, where K shrinks
        return {int(step.scores["slots"]) for step in early}

    assert slots("plain") == {1}
    assert slots("one_pass") == {4 * 5}
    assert slots("two_pass") == {1 + 4, 4}
    assert slots("partial", num_blocks=2) == {4 + 2 * 4, 1 + 4}


def test_two_pass_takes_turns_and_partial_pays_for_misses(leaning):
    for scheme in ("two_pass", "partial"):
        steps = run(leaning, prompts(1, 5), scheme=scheme, num_blocks=1).traces[0].steps[1:-4]
        for step, following in itertools.pairwise(steps):
            if step.scores["offered"] == 0:
                assert following.scores["offered"] == 3, "a draft pass without its draft"
            elif scheme == "two_pass":
                assert following.scores["offered"] == 0


# --- traces, streams ------------------------------------------------------------------------------


def test_a_trace_tells_draft_accepted_and_correction(leaning, plain_text):
    found = run(leaning, prompts(1, 5), scheme="one_pass")
    trace, said = found.traces[0], 0
    assert trace.question.tolist() == prompts(1, 5)[0].tolist()
    assert trace.answer.tolist() == plain_text
    for step, draft in zip(trace.steps, drafts(trace), strict=True):
        accepted = int(step.scores["accepted"])
        assert step.kind == "forward"
        assert step.position == 5 + said
        assert len(draft) == step.scores["offered"]
        assert draft[:accepted] == plain_text[said : said + accepted]
        if accepted < len(draft):
            assert draft[accepted] != plain_text[said + accepted], "it was no rejection"
        said += accepted + 1
        assert step.says.ids.tolist() == plain_text[said - accepted - 1 : said]
    assert trace.cost.evaluations == trace.cost.forwards == found.num_forwards
    assert [step.index for step in trace.steps] == list(range(1, found.num_forwards + 1))
    assert trace.cost.seconds > 0 and trace.cost.bytes > 0
    assert found.tokens_per_forward == [40 / found.num_forwards]


class Ear(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[int] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1


def test_streams_hold_committed_tokens_only(leaning, plain_text):
    ear, events = Ear(), []
    run(leaning, prompts(1, 5), streamer=ear, on_event=events.append)
    assert ear.heard == prompts(1, 5)[0].tolist() + plain_text
    assert ear.ended == 1
    assert [t for event in events if event.kind == "word" for t in event.tokens] == plain_text
    assert any(event.kind == "draft" and event.tokens for event in events)
    assert [event.kind for event in events][-2:] == ["word", "end"]
    assert [event.answer is not None for event in events].count(True) == 1
    assert events[-1].answer.stopped == "length"
    with pytest.raises(ValueError, match="a streamer shows one text, the batch has 2"):
        run(leaning, prompts(2, 5), streamer=Ear())


def test_a_stream_may_be_left_early(leaning, plain_text):
    said: list[int] = []
    for event in stream(leaning, prompts(1, 5), mask_id=MASK, K=4, max_new_tokens=40):
        assert isinstance(event, Event)
        said += event.tokens if event.kind == "word" else ()
        if len(said) > 6:
            break
    assert said == plain_text[: len(said)]
    assert len(said) < 12


# --- transformers' generate -----------------------------------------------------------------------


def test_generate_of_transformers_takes_it(leaning):
    ids = prompts(1, 5)
    options: dict[str, Any] = {
        "max_new_tokens": 30,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [MASK],
        "eos_token_id": 17,
        "pad_token_id": 0,
    }
    wanted = leaning.generate(ids, do_sample=False, **options)
    for scheme in VERIFYING:
        found = leaning.generate(
            ids,
            do_sample=False,
            custom_generate=generate,
            mask_id=MASK,
            scheme=scheme,
            K=4,
            **options,
        )
        assert found.tolist() == wanted.tolist()


def test_generate_samples_and_batches(leaning):
    ids, keep, singles = ragged("left")
    options: dict[str, Any] = {
        "custom_generate": generate,
        "mask_id": MASK,
        "K": 4,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "max_new_tokens": 12,
        "eos_token_id": 17,
        "pad_token_id": 0,
    }
    batch = leaning.generate(ids, attention_mask=keep, seed=5, **options)
    for b, single in enumerate(singles):
        alone = leaning.generate(
            single, attention_mask=torch.ones_like(single), seed=5 + b, **options
        )
        new = alone[0, single.shape[1] :].tolist()
        assert batch[b, 11:].tolist() == new + [0] * (batch.shape[1] - 11 - len(new))


def test_stop_strings_cut_inside_an_accepted_run():
    model, tokenizer = stories()
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    options: dict[str, Any] = {"max_new_tokens": 40, "stop_strings": ["day,"]}
    options["tokenizer"] = tokenizer
    wanted = model.generate(ids, do_sample=False, **options)[0, ids.shape[1] :].tolist()
    assert 3 < len(wanted) < 40

    def oracle(tokens, num):
        return full[len(tokens) - ids.shape[1] :][:num]

    full = decode(model, ids, scheme="plain", max_new_tokens=60).tokens[0]
    for K in (3, 8, 16):
        found = decode(model, ids, scheme="plain", drafter=oracle, K=K, **options)
        assert found.tokens == [wanted]
        assert found.traces[0].stopped == "stop"


# --- pure diffusion -------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", (0.0, 0.3, 1.0))
def test_diffusion_is_slow_diffusion(leaning, threshold):
    ids = prompts(1, 5)
    wanted, forwards = slow_diffusion(leaning, ids[0].tolist(), 22, K=4, threshold=threshold)
    found = run(leaning, ids, scheme="diffusion", threshold=threshold, max_new_tokens=22)
    assert found.tokens == [wanted]
    assert found.num_forwards == forwards
    assert threshold != 0.0 or forwards == 6
    assert threshold != 1.0 or forwards == 22


# --- TiDAR models and adapters --------------------------------------------------------------------


@pytest.mark.parametrize("own_mask", (True, False))
def test_an_adapter_drafts_and_the_words_stay(own_mask):
    """Whatever a draft-only adapter holds, the text is the base model's."""
    base = llama()
    ids = prompts(2, 7)
    mask_id = V if own_mask else MASK
    adapter = DraftAdapter(base, own_mask=own_mask)
    generator = torch.Generator().manual_seed(3)
    for B in adapter.lora_B.parameters():
        torch.nn.init.normal_(B, generator=generator)
    model = TiDAR(base, mask_id, 4, adapter=adapter).eval()
    wanted = run(llama(), ids, scheme="plain", mask_id=None if own_mask else MASK)
    judged = []
    for scheme in ("plain", *VERIFYING):
        found = decode(model, ids, scheme=scheme, max_new_tokens=40)
        assert found.tokens == wanted.tokens
        judged.append(drafts(found.traces[0]))
    without = run(llama(), ids, scheme="one_pass", mask_id=MASK)
    assert judged[2] != drafts(without.traces[0]), "the adapter did nothing"


@pytest.mark.parametrize("packed", (True, False, None))
def test_packed_weights_say_the_same(packed):
    """Of the model and of its adapter; nothing stays behind in either."""
    from inward.common.cpu.linears import can_pack
    from inward.methods.tidar.batch import Runner

    base = llama()
    if not can_pack(list(base.parameters())):
        pytest.skip("oneDNN does not pack weights on this machine")
    adapter = DraftAdapter(base)
    for B in adapter.lora_B.parameters():
        torch.nn.init.normal_(B, generator=torch.Generator().manual_seed(3))
    model = TiDAR(base, V, 4, adapter=adapter).eval()
    wanted = decode(llama(), prompts(1, 7), scheme="plain", max_new_tokens=30, packed=False)
    found = decode(model, prompts(1, 7), scheme="one_pass", max_new_tokens=30, packed=packed)
    assert found.tokens == wanted.tokens
    first, second = Runner(model, packed=packed).fast.linears
    layers = sum(type(module) is torch.nn.Linear for module in base.modules())
    # None: these matrices are too small for it to pay
    assert len(first.products) == (layers if packed else 0)
    assert len(second.products) == (2 * len(adapter.layers) if packed else 0)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_packing_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="cannot be packed: its linear layers must lie on a CPU"):
        run(llama().double(), prompts(1, 5), scheme="plain", packed=True)


def test_a_tidar_model_knows_its_mask_and_block_size():
    base = llama()
    mask_id = add_mask_token(base)
    model = TiDAR(base, mask_id, 3).eval()
    found = decode(model, prompts(1, 5), max_new_tokens=12)
    assert found.traces[0].meta["K"] == 3
    assert mask_id not in found.tokens[0]
    with pytest.raises(ValueError, match="mask_id is 7, but the model's own is"):
        decode(model, prompts(1, 5), mask_id=7)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"K": 0}, "K is 0"),
        ({"K": CONTEXT + 1}, f"K is {CONTEXT + 1}, but this model attends over {CONTEXT}"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"beta": 0.5, "scheme": "partial"}, "no mask block for every outcome"),
        ({"beta": 0.5, "drafter": PromptLookup()}, "use beta=1"),
        ({"scheme": "diffusion", "drafter": PromptLookup()}, "no use for a drafter"),
        ({"scheme": "three_pass"}, "scheme is 'three_pass'"),
        ({"scheme": "partial", "num_blocks": 0}, "num_blocks is 0"),
        ({"scheme": "diffusion", "threshold": 2.0}, "threshold is 2.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"mask_id": None}, "pass mask_id="),
        ({"mask_id": V}, f"mask_id is {V}, but the model embeds ids 0..{V - 1}"),
        ({"stop_strings": ["a"]}, "need the tokenizer"),
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask has shape"),
        ({"attention_mask": torch.zeros(1, 5)}, "prompt 0 has 0 tokens"),
    ],
)
def test_wrong_settings_are_refused(leaning, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(leaning, prompts(1, 5), **wrong)


def test_wrong_prompts_and_models_are_refused(leaning):
    with pytest.raises(ValueError, match="holds the mask token"):
        run(leaning, torch.tensor([[1, MASK, 2]]))
    with pytest.raises(ValueError, match=f"prompt 0 has {CONTEXT} tokens"):
        run(leaning, prompts(1, CONTEXT))
    with pytest.raises(ValueError, match=r"must be \(texts, tokens\) int64"):
        run(leaning, prompts(1, 5)[0])
    with pytest.raises(ValueError, match="on meta, the model on cpu"):
        run(leaning, prompts(1, 5).to("meta"))
    with pytest.raises(TypeError, match="temprature"):
        run(leaning, prompts(1, 5), temprature=2)


def test_a_model_that_ignores_masks_is_found_out():
    def deaf(module, query, key, value, attention_mask, **options):
        return AttentionInterface()["sdpa"](module, query, key, value, None, **options)

    AttentionInterface.register("deaf", deaf)
    model = llama()
    model.set_attn_implementation("deaf")
    with pytest.raises(ValueError, match="LlamaForCausalLM with deaf attention cannot draft"):
        run(model, prompts(1, 5))


# --- the long run ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_tokens_of_every_scheme():
    """stories260k, float32: identical to plain greedy, K = 1..8 and 16 (`benchmarks/tidar/decode.py
    identity` is the same at length)."""
    from benchmarks.tidar.decode import identity

    rows = list(identity(num_texts=25, max_new_tokens=400))
    assert len(rows) == 3 * 9
    for row in rows:
        assert row["tokens"] == 10_000
        assert row["different_texts"] == 0, row
        assert row["flips"] == 0, row
