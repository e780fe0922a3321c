import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from inward.common.cpu.decoding import Decoding
from inward.common.reach import ALL
from inward.common.trace import Trace
from inward.data.thoughts.segments import Latent, Sample, Text, flat
from inward.methods.coconut.generate import generate, stream
from inward.methods.coconut.model import Coconut
from inward.methods.coconut.switch import (
    Boundary,
    Budget,
    EntropySwitch,
    Scripted,
    Speaking,
    SwitchView,
)
from inward.methods.coconut.vote import vote
from tests.methods.coconut.toys import (
    BASES,
    SPECIALS,
    VOCAB,
    bot,
    eot,
    make_model,
    make_tokenizer,
    text,
    words,
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=BASES, scope="module")
def model(request) -> Coconut:
    return make_model(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Coconut:
    return make_model("gpt2")


def prompts() -> list[Sample]:
    """One speaks, one has thought, one is in the middle of thinking, one is about to."""
    return [
        Sample((text(5, 1),)),
        Sample((text(3, 2), bot(), Latent(3), eot(), text(2, 3))),
        Sample((text(7, 4), bot(), Latent(2))),
        Sample((text(2, 5), bot())),
    ]


def favour(model: Coconut, token: int, at: list[int] | None = None):
    """Make the base say a token, at some of its forwards or always."""
    calls = []

    def hook(_, args, out):
        if at is None or len(calls) in at:
            out.logits[..., token] += 100.0
        calls.append(1)
        return out

    return model.base.register_forward_hook(hook)


@torch.no_grad()
def slowly(model: Coconut, prompt: Sample, kinds: str) -> list[int]:
    """The same by hand: no cache, no batch. kinds: "t" a thought, "w" a greedy word, "b"/"e" a
    boundary token."""
    never = [SPECIALS.bot, SPECIALS.eot, SPECIALS.latent]
    rows = list(model(model.collate([prompt], may_end_open=True)).inputs_embeds[0])
    said = []
    for kind in kinds:
        places = torch.arange(len(rows))[None]
        hidden, logits, _ = model.run(torch.stack(rows)[None], torch.ones_like(places), places)
        if kind == "t":
            rows.append(model.feedback(hidden[0, -1]))
            continue
        logits[0, -1, never] = -math.inf
        token = {"b": SPECIALS.bot, "e": SPECIALS.eot}.get(kind, int(logits[0, -1].argmax()))
        said.append(token)
        rows.append(model.embedding(torch.tensor(token)))
    return said


# --- equal to the slow way, in any company --------------------------------------------------------


def test_text_alone_is_greedy_generation_of_the_base():
    for kind in ("gpt2", "llama"):
        model = make_model(kind)
        rows = [Sample((text(n, n),)) for n in (3, 6)]
        ours = generate(model, rows, max_new_tokens=12).tokens
        for row, got in zip(rows, ours, strict=True):
            ids = torch.tensor([words(row)])
            config = GenerationConfig(
                max_new_tokens=12, pad_token_id=0, suppress_tokens=[37, 38, 39]
            )
            want = cast(Any, model.base).generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
            assert got == want[0, ids.shape[1] :].tolist()


def test_scripted_rows_equal_the_slow_way(model):
    script = Scripted((3, 2), sentences=1, ends=range(37))  # every word is a sentence
    out = generate(model, prompts(), switch=script, max_new_tokens=12)
    # blocks of the prompt count, and an open one is filled up
    assert out.tokens[0] == slowly(model, prompts()[0], "btttewbtte" + "w" * 7)
    assert out.tokens[1] == slowly(model, prompts()[1], "wbtte" + "w" * 9)
    assert out.tokens[2] == slowly(model, prompts()[2], "tewbtte" + "w" * 8)
    assert out.tokens[3] == slowly(model, prompts()[3], "tttewbtte" + "w" * 8)
    assert out.thoughts == [5, 2, 3, 5]
    assert out.stopped == ["length"] * 4


SWITCHES = {
    "speak": Speaking(),
    "script": Scripted((2, 1), ends=range(0, 37, 2)),
    "entropy": EntropySwitch(dwell=1, longest=4),
    "boundary": Boundary(threshold=0.026, longest=3),
    "budget": Budget(EntropySwitch(dwell=1, longest=9), total=6, least=2, most=3),
}


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_row_does_not_feel_its_neighbours(model, switch, sampled):
    options = {"switch": switch, "max_new_tokens": 10, "noise": 0.2 if sampled else 0.0}
    options["logprobs"] = True
    speaks = isinstance(switch, Speaking)
    if sampled:
        options |= {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "top_k": 20}
    whole = generate(model, prompts(), seed=3, **options)
    for r, prompt in enumerate(prompts()):
        own = {**options, "noise": 0.0} if not prompt.blocks and speaks else options
        alone = generate(model, [prompt], seed=3 + r, **own)
        assert alone.tokens[0] == whole.tokens[r]
        assert alone.samples[0] == whole.samples[r]
        assert alone.logprobs[0] == pytest.approx(whole.logprobs[r], abs=1e-4)


def test_some_think_while_others_speak(gpt2):
    script = Scripted((3,))
    events = list(stream(gpt2, prompts(), switch=script, max_new_tokens=8))
    told = prompts()
    own = [[e for e in events if e.request == r and e.kind != "end"] for r in range(4)]
    for r, prompt in enumerate(told):  # what stands in the prompt comes first
        assert all(e.kind == "thought" for e in own[r][: prompt.num_thoughts])
    steps = [[e.kind for e in own[r][prompt.num_thoughts :]] for r, prompt in enumerate(told)]
    assert any({s[i] for s in steps if i < len(s)} == {"thought", "word"} for i in range(6))
    out = generate(gpt2, prompts(), switch=script, max_new_tokens=8)
    for r in range(4):
        assert [t for e in own[r] if e.kind == "word" for t in e.tokens] == out.tokens[r]
        assert [e.step for e in own[r]] == list(range(1, len(own[r]) + 1))
        last = [e for e in events if e.request == r][-1]
        assert last.kind == "end" and list(last.answer.tokens) == out.tokens[r]
    # one position per row per forward: the longest row decides; nothing is run for the last word
    columns = int(gpt2.collate(prompts(), may_end_open=True)["latent"].any(0).sum())
    assert out.num_passes == 1 + columns + max(map(len, steps)) - 1


def test_a_result_can_be_a_prompt_again(model):
    whole = generate(model, prompts(), max_new_tokens=8)
    half = generate(model, prompts(), max_new_tokens=3)
    rest = generate(model, half.samples, max_new_tokens=5)
    for r in range(4):
        assert half.tokens[r] + rest.tokens[r] == whole.tokens[r]
    assert whole.samples == rest.samples
    assert whole.samples[2].segments[-2] == Latent(2)


# --- ends -----------------------------------------------------------------------------------------


def test_the_end_token_ends_at_once(gpt2):
    first = generate(gpt2, prompts()[:2], max_new_tokens=4).tokens
    out = generate(gpt2, prompts()[:2], max_new_tokens=4, eos_token_id=first[0][0])
    assert out.tokens[0] == first[0][:1]
    assert out.stopped[0] == "end"
    both = generate(gpt2, prompts()[:2], eos_token_id=[first[0][0], first[1][0]])
    assert [len(t) for t in both.tokens] == [1, 1]
    assert both.num_passes == 1 + 3, "a forward was run after everything had ended"


def test_rows_that_ended_leave_the_others_alone(gpt2):
    first = generate(gpt2, prompts(), max_new_tokens=9).tokens
    out = generate(gpt2, prompts(), max_new_tokens=9, eos_token_id=first[0][0])
    for got, want in zip(out.tokens, first, strict=True):
        cut = want.index(first[0][0]) + 1 if first[0][0] in want else 9
        assert got == want[:cut]


def test_context_and_stop_strings_end_rows():
    model = make_model()
    long = Sample((text(90, 0),))
    out = generate(model, [long, prompts()[0]], max_new_tokens=20)
    assert out.stopped == ["context", "length"] and len(out.tokens[0]) == 6
    thinks = generate(model, [long], switch=lambda v: torch.ones_like(v.thinking))
    assert thinks.stopped == ["context"] and thinks.thoughts == [5]
    model.tokenizer = make_tokenizer()
    said = generate(model, prompts()[:1], max_new_tokens=9).tokens[0]
    out = generate(model, prompts()[:1], max_new_tokens=9, stop_strings=f"w{said[2]}")
    assert out.tokens[0] == said[: said.index(said[2]) + 1]
    assert out.stopped == ["stop"]


# --- who switches ---------------------------------------------------------------------------------


def test_learned_switching(gpt2):
    """The model says <bot>, thinks until it wants to say <eot>, and speaks."""
    handle = favour(gpt2, SPECIALS.bot, at=[2])
    other = favour(gpt2, SPECIALS.eot, at=[6])
    out = generate(gpt2, prompts()[:1], switch=Boundary(), max_new_tokens=6)
    handle.remove()
    other.remove()
    assert out.thoughts == [3]
    assert out.tokens[0][2] == SPECIALS.bot and out.tokens[0][3] == SPECIALS.eot
    assert out.samples[0].segments[1] == Latent(3)
    assert SPECIALS.bot in words(out.samples[0])


def test_learned_blocks_are_capped(gpt2):
    handle = favour(gpt2, SPECIALS.bot)
    out = generate(gpt2, prompts()[:1], switch=Boundary(longest=2), max_new_tokens=4)
    capped = generate(gpt2, prompts()[:1], switch=Boundary(), max_new_tokens=4, max_new_thoughts=3)
    handle.remove()
    bot_id, eot_id = SPECIALS.bot, SPECIALS.eot
    assert out.tokens[0] == [bot_id, eot_id, bot_id, eot_id]
    assert out.thoughts == [4]
    # out of thoughts: <bot> can no longer be said
    assert capped.tokens[0][:2] == [bot_id, eot_id] and bot_id not in capped.tokens[0][2:]
    assert capped.thoughts == [3]


@pytest.mark.parametrize("token", [SPECIALS.bot, SPECIALS.eot, SPECIALS.latent])
def test_special_tokens_are_never_words(gpt2, token):
    handle = favour(gpt2, token)
    out = generate(gpt2, prompts()[:2], max_new_tokens=4)
    drawn = generate(gpt2, prompts()[:2], max_new_tokens=4, do_sample=True)
    handle.remove()
    assert all(token not in row for row in (*out.tokens, *drawn.tokens))


def view(**fields) -> SwitchView:
    plain = SwitchView(
        specials=SPECIALS,
        thinking=torch.tensor([False]),
        run=torch.tensor([0]),
        thoughts=torch.tensor([0]),
        blocks=torch.tensor([0]),
        said=[[]],
        logits=torch.zeros(1, VOCAB),
        reference=torch.tensor([math.nan]),
        propose=lambda: torch.tensor([0]),
    )
    return replace(
        plain, **{k: v if k in ("said", "logits") else torch.tensor([v]) for k, v in fields.items()}
    )


def test_entropy_switching_follows_the_trend():
    switch = EntropySwitch(dwell=3, longest=5, max_blocks=2)
    flat, sharp = torch.zeros(1, VOCAB), torch.zeros(1, VOCAB).index_fill(1, torch.tensor(0), 9.0)
    assert switch(view()), "it begins with thinking"
    assert switch(view(blocks=1, run=3, reference=1.0, logits=flat))
    assert not switch(view(blocks=1, run=2, reference=1.0, logits=flat)), "dwell"
    assert not switch(view(blocks=1, run=3, reference=9.0, logits=flat)), "not above the reference"
    assert not switch(view(blocks=2, run=3, reference=1.0, logits=flat)), "no more blocks"
    thinking = {"thinking": True, "blocks": 1, "reference": 1.0}
    assert switch(view(**thinking, run=4, logits=flat))
    assert not switch(view(**thinking, run=4, logits=sharp)), "sure again"
    assert not switch(view(**thinking, run=5, logits=flat)), "too long"
    assert view(logits=flat).entropy.item() == pytest.approx(math.log(VOCAB))


def test_budgets_bound_another_switch():
    always = Budget(lambda v: torch.ones_like(v.thinking), total=5, most=3)
    assert always(view(thinking=True, run=2, thoughts=4))
    assert not always(view(thinking=True, run=2, thoughts=5))
    assert not always(view(thinking=True, run=3, thoughts=3))
    never = Budget(Speaking(), least=2)
    assert never(view(thinking=True, run=1)) and not never(view(thinking=True, run=2))
    assert not never(view(run=0))


def test_scripts_count_sentences_and_blocks():
    script = Scripted((2, 4), sentences=2, ends={7})
    assert script(view()) and not script(view(blocks=1, said=[[7, 1]]))
    assert script(view(blocks=1, said=[[7, 1, 7]])) and not script(view(blocks=2, said=[[7, 7]]))
    assert script(view(thinking=True, blocks=2, run=3))
    assert not script(view(thinking=True, blocks=2, run=4))
    assert not script(view(thinking=True, blocks=3, run=0)), "a block that the script lacks"


def test_bases_without_boundary_tokens_switch_silently(gpt2):
    out = generate(gpt2, prompts()[:1], switch=Scripted((2,)), max_new_tokens=3, boundaries=False)
    assert out.tokens[0] == slowly(gpt2, prompts()[0], "ttwww")
    assert out.samples[0].blocks == (2,)


@torch.no_grad()
def test_soft_thoughts_are_mean_embeddings(model):
    start = Sample((text(4, 1), bot()))
    out = generate(
        model, [start], switch=Scripted((1,)), thought="soft", max_new_tokens=2, trace=True
    )
    ids = torch.tensor([words(start)])
    rows = model.embedding(ids)
    places = torch.arange(ids.shape[1])[None]
    _, logits, _ = model.run(rows, torch.ones_like(places), places)
    soft = logits[0, -1].softmax(-1) @ model.embedding(torch.arange(VOCAB))
    rows = torch.cat([rows, soft[None, None], model.embedding(torch.tensor([[SPECIALS.eot]]))], 1)
    places = torch.arange(rows.shape[1])[None]
    _, logits, _ = model.run(rows, torch.ones_like(places), places)
    assert out.tokens[0] == [SPECIALS.eot, int(logits[0, -1, :37].argmax())]


# --- drawing --------------------------------------------------------------------------------------


def test_generation_configs_are_respected(gpt2):
    greedy = generate(gpt2, prompts(), max_new_tokens=8).tokens
    one = generate(gpt2, prompts(), max_new_tokens=8, do_sample=True, top_k=1)
    assert one.tokens == greedy
    config = GenerationConfig(do_sample=True, temperature=1e-4, max_new_tokens=5)
    cold = generate(gpt2, prompts(), generation_config=config)
    assert cold.tokens == [row[:5] for row in greedy]
    hot = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    a, b, c = (generate(gpt2, prompts(), seed=s, **hot).tokens for s in (0, 0, 9))
    assert a == b != c


def test_samples_follow_the_distribution(gpt2):
    """1200 draws of one word against its probabilities."""
    row = Sample((text(3, 1),))
    out = generate(gpt2, [row] * 1200, max_new_tokens=1, do_sample=True)
    counts = np.bincount([t[0] for t in out.tokens], minlength=VOCAB) / 1200
    with torch.no_grad():
        logits = gpt2(gpt2.collate([row]), logits="all").logits[0, -1]
    logits[37:] = -math.inf
    p = logits.softmax(-1).numpy()
    assert np.abs(counts - p).max() < 5 * np.sqrt(p.max() / 1200)


def test_processors_see_the_words_of_their_row_alone(gpt2):
    """transformers' own repetition penalty, on one row, without padding."""
    row = prompts()[0]
    ids = torch.tensor([words(row)])
    config = GenerationConfig(
        max_new_tokens=10, repetition_penalty=1.7, pad_token_id=0, suppress_tokens=[37, 38, 39]
    )
    want = cast(Any, gpt2.base).generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    out = generate(gpt2, prompts(), max_new_tokens=10, repetition_penalty=1.7)
    assert out.tokens[0] == want[0, ids.shape[1] :].tolist()
    assert out.tokens[0] != generate(gpt2, [row], max_new_tokens=10).tokens[0]


def test_noise_and_edits_touch_thoughts_only(gpt2):
    options = {"max_new_tokens": 6, "logprobs": True}
    plain = generate(gpt2, prompts(), **options)
    noisy = generate(gpt2, prompts(), noise=3.0, **options)
    assert noisy.tokens[0] == plain.tokens[0], "a row without thoughts"
    assert noisy.logprobs[1] != plain.logprobs[1] and noisy.logprobs[2] != plain.logprobs[2]
    again = generate(gpt2, prompts(), noise=3.0, **options)
    assert again.logprobs == noisy.logprobs
    seen = []

    def edit(thought, where, number):
        seen.extend((r, int(number[r])) for r in where.nonzero()[:, 0].tolist())
        return thought

    generate(gpt2, prompts(), switch=Scripted((4,)), max_new_tokens=9, edit=edit)
    assert sorted(seen) == [(0, n) for n in range(4)] + [(1, n) for n in range(3)] + [
        (r, n) for r in (2, 3) for n in range(4)
    ]


def test_votes(gpt2):
    rows = prompts()[1:3]
    votes = vote(
        gpt2, rows, num_samples=5, noise=2.0, max_new_tokens=3, answer=lambda ids: ids[-1] % 3
    )
    tries = generate(gpt2, [r for r in rows for _ in range(5)], noise=2.0, max_new_tokens=3)
    for p, won in enumerate(votes):
        assert won.tokens == tries.tokens[5 * p : 5 * p + 5]
        assert won.answers == [ids[-1] % 3 for ids in won.tokens]
        assert won.share == won.answers.count(won.answer) / 5
        assert all(won.answers.count(a) <= won.answers.count(won.answer) for a in won.answers)
    with pytest.raises(ValueError, match="must differ"):
        vote(gpt2, rows, num_samples=2, noise=0.0)


# --- what is kept ---------------------------------------------------------------------------------


def test_traces_tell_thoughts_and_words(gpt2):
    out = generate(
        gpt2, prompts(), switch=Scripted((3,)), max_new_tokens=5, trace=("lens",), lens=4
    )
    for r, trace in enumerate(out.traces):
        sample = out.samples[r]
        batch = gpt2.collate([sample])
        with torch.no_grad():
            logp = gpt2(batch, logits="all").logits[0].log_softmax(-1)
        thinks = [step for step in trace.steps if step.kind == "thought"]
        spoken = [step for step in trace.steps if step.kind == "word"]
        assert len(thinks) == sample.num_thoughts
        assert [int(step.says.ids[0]) for step in spoken] == out.tokens[r]
        assert trace.answer.tolist() == out.tokens[r]
        assert [step.position for step in thinks] == batch["latent"][0].nonzero()[:, 0].tolist()
        for step in trace.steps:
            before = logp[step.position - 1]
            entropy = -(before.exp() * before).sum()
            assert step.scores["entropy"] == pytest.approx(float(entropy), abs=1e-5)
            span = step.says if step.kind == "word" else step.view["lens"]
            want = before[torch.from_numpy(span.ids)].exp()
            assert span.confidence.tolist() == pytest.approx(want.tolist(), abs=1e-5)
        for step in thinks:
            top = logp[step.position - 1].topk(4).indices.tolist()
            assert step.view["lens"].ids.tolist() == top
        assert trace.cost.evaluations == len(trace.steps)
        assert trace.stopped == out.stopped[r]
        assert Trace.from_dict(trace.to_dict()).to_dict() == trace.to_dict()


def test_logprobs_add_up_the_words(gpt2):
    out = generate(
        gpt2, prompts(), switch=Scripted((2,)), max_new_tokens=5, trace=True, logprobs=True
    )
    for row, trace in zip(out.logprobs, out.traces, strict=True):
        said = [step for step in trace.steps if step.kind == "word"]
        chances = [float(s.says.confidence[0]) for s in said if int(s.says.ids[0]) < SPECIALS.bot]
        assert row == pytest.approx(sum(map(math.log, chances)), abs=1e-4)
    assert generate(gpt2, prompts(), max_new_tokens=1).logprobs == []


def test_costs_count_the_weights(gpt2):
    out = generate(gpt2, prompts()[:1], max_new_tokens=2, trace=True)
    steps = out.traces[0].steps
    block = 2 * (4 + 8) * 16 * 16  # two layers
    # the first step is the prompt's forward: five positions, of which the head reads one
    assert steps[0].cost.flops == 2 * (5 * block + VOCAB * 16) + 4 * 2 * 16 * 15
    assert steps[1].cost.flops == 2 * (block + VOCAB * 16) + 4 * 2 * 16 * 6
    assert replace(out.costs[0], parameters=0) == out.traces[0].cost


def test_streamers_get_words(gpt2):
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, ids):
            self.got += ids.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    out = generate(gpt2, prompts()[1:2], max_new_tokens=4, streamer=streamer)
    asked = flat(prompts()[1], latent=SPECIALS.latent)[0]
    assert streamer.got == [*asked, *out.tokens[0]] and streamer.ended
    with pytest.raises(ValueError, match="shows one text, the batch has 4"):
        generate(gpt2, prompts(), streamer=streamer)


def test_bad_requests_are_refused_before_any_work(gpt2):
    row = prompts()[:1]
    bad = [
        ({"beams": 2}, r"no options \['beams'\]"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"thought": "loud"}, "thought is 'loud'"),
        ({"stop_strings": "x"}, "need a tokenizer"),
        ({"num_beams": 2}, "num_beams"),
    ]
    for options, told in bad:
        with pytest.raises(ValueError, match=told):
            stream(gpt2, row, **options)
    with pytest.raises(ValueError, match="no room for an answer"):
        stream(gpt2, [Sample((text(96, 0),))])
    with pytest.raises(ValueError, match=r"prompt 1: .*placeholder"):
        stream(gpt2, [*row, Sample((Text((3, SPECIALS.latent), False),))])
    with pytest.raises(ValueError, match="prompt 1: it holds thoughts"):
        stream(gpt2, prompts()[:2], thought="soft", switch="boundary")
    with pytest.raises(ValueError, match=r"must be bool \(1,\)"):
        generate(gpt2, row, switch=lambda v: v.run)
    for make, told in (
        (lambda: Scripted(()), "thoughts"),
        (lambda: Scripted((1, 1)), "ends"),
        (lambda: Boundary(threshold=2.0), "threshold 2.0"),
        (lambda: EntropySwitch(dwell=-1), "dwell -1"),
        (lambda: Budget(Speaking(), least=3, most=2), "most not below least"),
    ):
        with pytest.raises(ValueError, match=told):
            make()


def test_seats_move_together_when_more_than_half_are_empty():
    from inward.methods.coconut.seats import Seats, SharedPast

    class Row:
        pass

    past = SharedPast(4, ALL)
    past.cache.extend(4)
    past.cache.book.lengths[:] = [3, 1, 4, 2]
    # of the seats that are taken all are as long: no mask is needed, wherever the empty one was
    past.cache.book.lengths[:] = [3, 1, 3, 3]
    assert past.begin([True, False, True, True], torch.device("cpu"), torch.float32) is None
    past.cache.book.lengths[:] = [3, 1, 4, 9]
    mask: Any = past.begin([True, True, True, False], torch.device("cpu"), torch.float32)
    seen = (mask[:, 0, 0] == 0).long().cumprod(1).sum(1)
    assert mask.shape == (4, 1, 1, 5) and seen[:3].tolist() == [4, 2, 5]
    past.cache.book.lengths[:] = [3, 1, 4, 2]
    seats: Any = Seats(Decoding(make_model("llama")), past)
    rows = seats.rows = [Row() for _ in range(4)]
    seats.hidden = seats.logits = torch.arange(4.0)[:, None]
    seats.leave([rows[0], rows[2]])
    assert seats.rows == [None, rows[1], None, rows[3]]  # half of them: not worth the copy
    assert seats.live == [(1, rows[1]), (3, rows[3])] and len(seats.hidden) == 4
    seats.leave([rows[1]])
    assert seats.rows == [rows[3]] and past.cache.book.lengths == [2]
    assert seats.hidden.tolist() == seats.logits.tolist() == [[3.0]]
    seats.leave([rows[3]])
    assert seats.rows == [None] and past.cache.book.lengths == [2]
