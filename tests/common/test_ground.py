"""The small parts that all methods stand on, each against the plain way of doing the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from inward.common.checks import MAX_SEED, check_slice, checked_seed, need
from inward.common.draws import Draws
from inward.common.nn import rms_norm
from inward.common.ragged import RaggedCache
from inward.common.requests import check_prompt, end_tokens, prompts_of
from inward.common.speaking import Speaker, StopWords
from inward.common.thinking import Answer, Event, Lanes, Request, answers

# --- a cache of uneven rows -----------------------------------------------------------------------

HEADS, WIDTH, LAYERS = 2, 3, 2


class Plain:
    """A list of keys for each text and layer: what `RaggedCache` must be."""

    def __init__(self, num: int) -> None:
        self.texts = [[torch.zeros(HEADS, 0, WIDTH)] * LAYERS for _ in range(num)]

    def put(self, new: list[Tensor], counts: list[int]) -> None:
        for b, count in enumerate(counts):
            self.texts[b] = [
                torch.cat([old, new[i][b, :, :count]], 1) for i, old in enumerate(self.texts[b])
            ]


def rows(texts: int, num: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(texts, HEADS, num, WIDTH, generator=generator) for _ in range(LAYERS)]


def forward(cache: RaggedCache, new: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What a model does with a cache; values are the negative keys."""
    cache.begin(new[0].shape[2], new[0].device)
    return [cache.update(k, -k, i) for i, k in enumerate(new)]


def check(cache: RaggedCache, plain: Plain) -> None:
    for b, text in enumerate(plain.texts):
        for i, keys in enumerate(text):
            found = cache.committed(b, i)
            assert torch.equal(found[0], keys) and torch.equal(found[1], -keys)
    lengths = [text[0].shape[1] for text in plain.texts]
    assert cache.book.lengths == lengths and cache.get_seq_length() == max(lengths)


@given(st.data())
def test_a_ragged_cache_is_a_list_of_texts(data: st.DataObject):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    num = data.draw(st.integers(1, 3))
    cache, plain = RaggedCache(num, data.draw(st.integers(1, 4))), Plain(num)
    for _ in range(data.draw(st.integers(1, 5))):
        width = data.draw(st.integers(1, 4))
        new = rows(len(plain.texts), width, generator)
        seen = forward(cache, new)
        for i, (keys, values) in enumerate(seen):
            for b, text in enumerate(plain.texts):
                held = torch.cat([text[i], new[i][b]], 1)
                assert torch.equal(keys[b, :, : held.shape[1]], held)
                assert torch.equal(values[b, :, : held.shape[1]], -held)
        counts = [data.draw(st.integers(0, width)) for _ in plain.texts]
        cache.commit(counts)
        plain.put(new, counts)
        check(cache, plain)
        act = data.draw(st.sampled_from(["select", "extend", "insert", "nothing"]))
        if act == "select":
            kept = data.draw(st.permutations(range(len(plain.texts))))
            kept = kept[: data.draw(st.integers(1, len(kept)))]
            cache.select(kept)
            plain.texts = [plain.texts[b] for b in kept]
        elif act == "extend":
            cache.extend(2)
            plain.texts += Plain(2).texts
        elif act == "insert":
            b, length = (
                data.draw(st.integers(0, len(plain.texts) - 1)),
                data.draw(st.integers(1, 9)),
            )
            past = [keys[0] for keys in rows(1, length, generator)]
            cache.insert([b], [length], [(keys[None], -keys[None]) for keys in past])
            plain.texts[b] = past
        check(cache, plain)


def test_rooms_double_when_they_run_out():
    """So that a text of n tokens is copied log n times."""
    cache, sizes = RaggedCache(1, 2), []
    for _ in range(20):
        forward(cache, rows(1, 1, torch.Generator()))
        cache.commit([1])
        sizes.append(cache.book.capacity)
    assert sizes == [2, 2] + [4] * 2 + [8] * 4 + [16] * 8 + [32] * 4
    forward(cache, rows(1, 50, torch.Generator()))
    assert cache.book.capacity == 70  # one long forward: what it needs, where that is more
    assert cache.get_mask_sizes(5, 0) == (25, 0)


def test_caches_join_whatever_room_they_have():
    generator = torch.Generator().manual_seed(0)
    caches, plains = [RaggedCache(2, 3), RaggedCache(1, 9)], [Plain(2), Plain(1)]
    for cache, plain, width, counts in zip(caches, plains, (3, 5), ([3, 1], [4]), strict=True):
        new = rows(len(plain.texts), width, generator)
        forward(cache, new)
        cache.commit(counts)
        plain.put(new, counts)
    caches[0].join(caches[1])
    plains[0].texts += plains[1].texts
    check(caches[0], plains[0])
    assert caches[0].book.lengths == [3, 1, 4] and caches[0].book.capacity == 9


# --- text while it is said ------------------------------------------------------------------------


def spell(tokens: Any) -> str:
    """A token is a byte."""
    return bytes(tokens).decode(errors="replace")


def test_stop_words_are_found_at_the_end_and_held_back_until_they_fail():
    stop = StopWords(("END", "\n\n"), spell)
    assert stop.found(b"so END") and stop.found(b"\n\n") and not stop.found(b"so EN")
    assert not stop.found(b"END of it")  # said long ago; the longest word and one token are read
    assert stop.found(b"END.") and not stop.found(b"END..")
    assert (stop.cut("a\n\nb END c"), stop.cut("a END b\n\nc"), stop.cut("abc")) == (
        "a",
        "a ",
        "abc",
    )
    assert stop.cut("END") == ""
    held = {"": 0, "E": 1, "xE": 1, "EN": 2, "xEN": 2, "ENx": 0, "\n": 1, "EN\n": 1, "END": 0}
    assert {text: stop.held(text) for text in held} == held
    for wrong in ((), ("",), ("a", "")):
        with pytest.raises(ValueError, match="give texts that are not empty"):
            StopWords(wrong, spell)


def test_a_speaker_gives_whole_characters_and_takes_nothing_back():
    speaker = Speaker(spell, StopWords(("STOP",), spell))
    word = "é".encode()
    said = [
        speaker.say(part) for part in (b"a", word[:1], word[1:], b" S", b"T", b"x", b"ST", b"OP!")
    ]
    assert said == ["a", "", "é", " ", "", "STx", "", ""]
    assert speaker.rest() == "" and speaker.say(b"more") == ""
    assert speaker.text() == "aé STxSTOP!more" and speaker.text(1) == "a" and speaker.text(0) == ""
    speaker = Speaker(spell, StopWords(("STOP",), spell))
    assert [speaker.say(b"a ST"), speaker.rest(), speaker.rest()] == ["a ", "ST", ""]
    speaker = Speaker(spell, unsettled=lambda tokens: len(tokens) % 2)
    assert [speaker.say(b"abc"), speaker.say(b"d"), speaker.say(b"e")] == ["ab", "cd", ""]
    assert speaker.rest() == "e"


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_lose_their_padding_on_either_side():
    ids = torch.tensor([[0, 0, 5], [7, 8, 9]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    assert prompts_of(ids, mask, context=4) == [[5], [7, 8, 9]]
    assert prompts_of(ids.flip(1), mask.flip(1), context=4) == [[5], [9, 8, 7]]
    assert prompts_of(ids, context=4) == ids.tolist() == prompts_of(ids.tolist(), context=4)
    for wrong, told in (
        ({"input_ids": [], "context": 4}, "no prompt"),
        ({"input_ids": ids, "context": 3}, "prompt 0 has 3 tokens; the context is 3, so 1 to 2"),
        ({"input_ids": [[1], []], "context": 3}, "prompt 1 has 0 tokens"),
        ({"input_ids": [[1]], "attention_mask": mask, "context": 3}, "lists need none"),
        ({"input_ids": ids[0], "context": 4}, r"of shape \(3,\)"),
        ({"input_ids": ids.float(), "context": 4}, "float32"),
        ({"input_ids": ids, "attention_mask": mask[:1], "context": 4}, r"shape \(1, 3\)"),
        (
            {"input_ids": ids, "attention_mask": torch.tensor([[1, 0, 1]] * 2), "context": 4},
            "holes",
        ),
        (
            {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 0]] * 2), "context": 4},
            "holes",
        ),
        ({"input_ids": ids, "context": 4, "vocab_size": 9}, "from 7 to 9, the model knows 0 to 8"),
        ({"input_ids": -ids, "context": 4, "vocab_size": 9}, "from -5 to 0"),
    ):
        with pytest.raises(ValueError, match=told):
            prompts_of(**wrong)
    assert prompts_of(ids, context=4, vocab_size=10) == ids.tolist()
    check_prompt([1, 2, 3], context=4, vocab_size=4)


def test_end_tokens_are_those_given_or_the_configs():
    config = GenerationConfig(eos_token_id=[3, 4])
    assert end_tokens(None, config) == {3, 4} and end_tokens(5, config) == {5}
    assert end_tokens([], config) == end_tokens(None, None) == frozenset()
    assert end_tokens([0, 6], None, vocab_size=7) == {0, 6}
    for wrong in (7, -1, [0, 7]):
        with pytest.raises(ValueError, match="the vocabulary has 7"):
            end_tokens(wrong, None, vocab_size=7)


# --- checks, draws, norm --------------------------------------------------------------------------


def test_checks_at_their_edges():
    need(True, "x", 1, "2")
    with pytest.raises(ValueError, match="x is 1, but must be 2"):
        need(False, "x", 1, "2")
    assert (checked_seed(0), checked_seed(MAX_SEED), MAX_SEED) == (0, MAX_SEED, 2**32 - 1)
    for wrong in (-1, MAX_SEED + 1):
        with pytest.raises(ValueError, match=f"seed is {wrong}"):
            checked_seed(wrong)
    check_slice(0, range(0, 4), 4)
    check_slice(0, range(4, 4), 4)
    for step, part in ((-1, range(2)), (0, range(-1, 2)), (0, range(3, 5))):
        with pytest.raises(ValueError, match=r"step is -1|lie outside a batch of 4"):
            check_slice(step, part, 4)


def test_draws_belong_to_their_rows_and_have_their_distribution():
    whole, num = Draws(3, 5, range(4000), 4000), 4000
    part = Draws(3, 5, range(10, 20), num)
    normal, uniform, integers = whole.normal(2), whole.uniform(), whole.integers(2, 5, 3)
    assert torch.equal(part.normal(2), normal[10:20])
    assert torch.equal(part.uniform(), uniform[10:20])
    assert torch.equal(part.integers(2, 5, 3), integers[10:20])
    assert abs(float(normal.mean())) < 0.05 and abs(float(normal.std()) - 1) < 0.05
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert integers.unique().tolist() == [2, 3, 4] and integers.shape == (num, 3)
    for other in (Draws(4, 5, range(num), num), Draws(3, 6, range(num), num)):
        assert not torch.equal(other.normal(2), normal)
    Draws(0, 0, range(0), 0)
    for seed, step, own in ((-1, 0, range(4)), (0, -1, range(4)), (0, 0, range(5)),
                            (0, 0, range(-1, 2)), (0, 0, range(0, 4, 2))):  # fmt: skip
        with pytest.raises(ValueError, match=r"0 or more|plain range within the batch of 4"):
            Draws(seed, step, own, 4)


def test_the_norm_is_the_root_of_the_mean_square_and_zero_stays_zero():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    want = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / (12.5 + 0.5) ** 0.5
    torch.testing.assert_close(rms_norm(x, 0.5), want)
    assert rms_norm(x.bfloat16(), 0.5).dtype == torch.bfloat16
    assert torch.equal(rms_norm(x[1], 1e-6), torch.zeros(2))


# --- lanes ----------------------------------------------------------------------------------------


class Counting:
    """Work that says each request's prompt, one number a step, all requests together."""

    made: list[Counting] = []  # noqa: RUF012

    def __init__(self, key: Any) -> None:
        self.key, self.left, self.done, self.next, self.told = key, {}, {}, 0, []
        Counting.made.append(self)

    @property
    def busy(self) -> bool:
        return bool(self.left or self.told)

    def add(self, request: Request) -> int:
        if not request.prompt:
            raise ValueError("nothing to say")
        number, self.next = self.next, self.next + 1
        self.left[number] = [list(request.prompt), []]
        return number

    def step(self) -> list[Event]:
        found, self.told = self.told, []
        for number, (left, said) in list(self.left.items()):
            said.append(left.pop(0))
            found.append(Event("word", number, (said[-1],), step=len(said)))
            if not left:
                found.append(self._end(number, "length"))
        return found

    def _end(self, number: int, why: str) -> Event:
        said = tuple(self.left.pop(number)[1])
        self.done[number] = Answer(tokens=said, steps=len(said), stopped=why)
        return Event("end", number, answer=self.done[number])

    def cancel(self, number: int) -> None:
        if number in self.left:
            self.told.append(self._end(number, "cancelled"))

    def end_thinking(self, number: int) -> None:
        raise ValueError("counting is no thinking")

    def result(self, number: int) -> Answer:
        if number in self.left:
            raise ValueError("has not ended")
        return self.done.pop(number)


def test_lanes_keep_requests_of_a_kind_together_and_number_them_apart():
    Counting.made = []
    lanes = Lanes(lambda request: len(request.prompt) > 2, Counting)
    assert not lanes.busy and lanes.step() == []
    long, short = [1, 2, 3], [4, 5]
    numbers = [lanes.add(Request(p)) for p in (long, short, [6, 7, 8, 9], [3])]
    assert numbers == [0, 1, 2, 3] and [lane.key for lane in Counting.made] == [True, False]
    with pytest.raises(ValueError, match="nothing to say"):
        lanes.add(Request([]))
    first = lanes.step()
    assert {(e.request, e.tokens) for e in first if e.kind == "word"} == {
        (0, (1,)), (1, (4,)), (2, (6,)), (3, (3,))
    }  # fmt: skip
    assert [e.request for e in first if e.kind == "end"] == [3]
    with pytest.raises(ValueError, match="has not ended"):
        lanes.result(0)
    lanes.cancel(2)
    while lanes.busy:
        lanes.step()
    found = [lanes.result(n) for n in (2, 0, 3, 1)]
    assert [a.tokens for a in found] == [(6,), (1, 2, 3), (3,), (4, 5)]
    assert [a.stopped for a in found] == ["cancelled", "length", "length", "length"]
    for act in (lanes.result, lanes.cancel):
        for number in (0, 4):
            with pytest.raises(KeyError, match=f"no request {number}"):
                act(number)
    assert lanes.add(Request([1, 2])) == 4, "numbers are never used twice"
    assert len(Counting.made) == 3, "a lane without requests is gone"
    assert [a.tokens for a in answers(lanes, [Request(long), Request([9])])] == [(1, 2, 3), (9,)]
    assert [e.request for e in lanes.step() if e.kind == "end"] == []
    assert lanes.result(4).tokens == (1, 2)
