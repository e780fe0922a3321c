"""The verb, on a fifth method that no other file knows: what `Thinker` promises whatever thinks."""

import json
from typing import Any

import numpy as np
import pytest

from inward import hub
from inward.common.speaking import Speaker, StopWords
from inward.common.thinking import STOPPED, Answer, Event, Lanes, Request, answers, run
from inward.common.trace import Trace
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.hub import Entry, write_about
from inward.thinker import Thinker, open_thinker
from tests.fifth.model import Parrot
from tests.fifth.work import Repeating


@pytest.fixture(autouse=True)
def row(monkeypatch):
    """The one row in hub that a method needs."""
    entry = Entry("test_parrot", "tests.fifth.model:Parrot", "tests.fifth.door:METHOD")
    monkeypatch.setitem(hub.METHODS, "parrot", entry)


@pytest.fixture
def folder(tmp_path):
    Parrot(257).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def thinker(folder) -> Thinker:
    return open_thinker(folder)


# --------------------------------------------------------------------------------------------------
# One question, many


def test_one_gives_one_and_a_list_gives_a_list(thinker):
    answer = thinker.ask("ab")
    assert isinstance(answer, Answer) and str(answer) == answer.text == "ab"
    assert answer.tokens == (97, 98) and answer.stopped in STOPPED and answer.cost.forwards == 2
    assert answer.cost.seconds > 0 and answer.trace is None and answer.logprobs is None
    assert [a.text for a in thinker.ask(["ab", "c"])] == ["ab", "c"]
    assert [a.text for a in thinker.ask(("ab",))] == ["ab"]


def test_a_bad_question_does_not_lose_the_others(thinker):
    first, bad, wrong, last = thinker.ask(["ab", "", 7, "é"])
    assert (first.text, last.text) == ("ab", "é") and first.error is last.error is None
    assert "empty" in bad.error and bad.text == "" and "int" in wrong.error
    with pytest.raises(ValueError, match="empty"):
        thinker.ask("")
    with pytest.raises(ValueError, match="the context is 100"):
        thinker.ask("a" * 100)
    assert "the context is 100" in thinker.ask(["a" * 100, "b"])[0].error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"K": 3}, r"parrot has no option K \(of tidar, plain\); it has times"),
        ({"timez": 3}, "parrot has no option timez"),
        ({"effort": 0.5}, "effort is 0.5; give an int in the method's own unit"),
        ({"effort": True}, "effort is True"),
        ({"effort": 0}, "it counts repetitions, from 1 on"),
        ({"effort": "huge"}, "low, medium, high"),
        ({"effort": "low"}, "nobody has measured its points"),
        ({"effort": 2, "times": 3}, "sets times, which is given too"),
        ({"trace": "lens"}, "traces have no lens; beside the plain record .* there is echo"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"stop": ""}, None),
        ({"stop": ["a", ""]}, "texts that are not empty"),
        ({"seed": -1}, "seeds are ints from 0 on"),
        ({"seed": 1.5}, "seed"),
        ({"logprobs": 5}, "give True for those of every token said"),
    ],
)
def test_what_is_refused_is_named_before_any_work(thinker, options, told):
    for verb in (thinker.ask, thinker.stream):
        if told is None:
            continue
        with pytest.raises((ValueError, TypeError), match=told):
            verb("ab", **options)


def test_lists_that_are_no_questions(thinker):
    for wrong, told in (([], "list is empty"), ([1, 2], "list of numbers")):
        with pytest.raises(ValueError, match=told):
            thinker.ask(wrong)
    with pytest.raises(ValueError, match="takes one question, not 2"):
        thinker.stream(["a", "b"])
    with pytest.raises(ValueError, match="2 seeds for 1 questions"):
        thinker.ask("a", seed=[1, 2])


# --------------------------------------------------------------------------------------------------
# Effort


def test_effort_is_the_methods_unit_or_a_saved_point(folder):
    thinker = open_thinker(folder)
    assert thinker.ask("ab", effort=3).text == "ababab" == thinker.ask("ab", times=3).text
    point = {"own": {"times": 2}, "accuracy": 0.5, "interval": [0.4, 0.6]}
    write_about(folder, effort={"points": {"low": point}})
    again = open_thinker(folder)
    assert again.ask("ab", effort="low").text == "abab"
    with pytest.raises(ValueError, match="has no effort 'high'"):
        again.ask("ab", effort="high")
    write_about(folder, effort={"why_not": "more buys nothing"})
    with pytest.raises(ValueError, match="more buys nothing"):
        open_thinker(folder).ask("ab", effort="low")


def test_how_a_model_is_asked_lies_beside_it(folder):
    write_about(folder, ask={"own": {"times": 2}, "max_new_tokens": 3})
    thinker = open_thinker(folder)
    assert thinker.ask("ab").text == "aba" and thinker.ask("ab", times=1).text == "ab"
    assert thinker.ask("ab", max_new_tokens=4).text == "abab"
    write_about(folder, processor={"kind": "tokenizer", "after": "!"})
    assert open_thinker(folder).ask("a", times=1).text == "a!"
    assert set(json.loads((folder / "inward.json").read_text())) == {"ask", "processor"}


# --------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize("text", ["plain", "é€𝄞 ü", "a\nb"])
def test_words_joined_are_the_text_and_half_characters_wait(thinker, text):
    events = list(thinker.stream(text, times=2, trace=True))
    words = [event.text for event in events if event.kind == "word"]
    assert "".join(words) == text * 2 == events[-1].answer.text
    assert not any("�" in word for word in words)
    assert [event.kind for event in events[:-1]] == ["word"] * (len(events) - 1)
    assert events[-1].kind == "end" and all(isinstance(event, Event) for event in events)
    assert [e.step for e in events if e.tokens] == list(range(1, 1 + 2 * len(text.encode())))


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("abcd", "c", "ab"),
        ("abcabd", "abd", "abc"),
        ("aab", ["ab", "zz"], "a"),
        ("ab", "bx", "ab"),
        ("aé€b", "€", "aé"),
        ("abab", ["b", "ab"], ""),
    ],
)
def test_stop_words_end_the_answer_and_are_no_part_of_it(thinker, text, stop, left):
    answer = thinker.ask(text, stop=stop, times=1)
    assert answer.text == left and answer.stopped == ("halted" if left == text else "stop")
    events = list(thinker.stream(text, stop=stop, times=1))
    assert "".join(e.text for e in events if e.kind == "word") == left == events[-1].answer.text


def test_what_may_become_a_stop_word_is_held_back():
    speaker = Speaker(bytes.decode and (lambda ids: bytes(ids).decode()), StopWords(("abd",), str))
    said = [speaker.say([byte]) for byte in b"xabc"]
    assert said == ["x", "", "", "abc"] and speaker.say(b"ab") == "" and speaker.rest() == "ab"


def test_a_run_of_bytes_waits_for_its_end():
    """In vocabularies that fall back to bytes one bad byte spoils all those before it."""
    said = {1: b"\n", 2: b"\xf0", 3: b"x"}

    def decode(ids):
        raw = b"".join(said[i] for i in ids)
        spoilt = b"\xf0" in raw
        return (
            raw.decode()
            if not spoilt
            else "\ufffd" * raw.count(b"\n") + "\ufffd" + "x" * (3 in ids)
        )

    def unsettled(ids):
        return next((n for n, i in enumerate(reversed(ids)) if i == 3), len(ids))

    speaker = Speaker(decode, unsettled=unsettled)
    words = [speaker.say([token]) for token in (1, 2, 3)] + [speaker.rest()]
    assert words[:2] == ["", ""] and "".join(words) == decode([1, 2, 3])


def test_stories_speak_bytes_without_taking_them_back():
    processor: Any = open_thinker("stories-draft").processor
    vocabulary = processor.tokenizer.get_vocab()
    run = [vocabulary[name] for name in ("<0x0A>", "<0xF0>", "<0x9F>")]
    speaker = Speaker(processor.write, unsettled=processor.unsettled)
    words = [speaker.say([token]) for token in run] + [speaker.rest()]
    assert "".join(words) == processor.write(run)


def test_questions_that_are_no_text_are_told_and_lose_nobody(thinker, folder):
    good, bad, last = thinker.ask(["a", "\ud800", "b"])
    assert (good.text, last.text) == ("a", "b") and "no Unicode text" in bad.error
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    strict = open_thinker(folder, tokenizer=tokenizer)
    chat = [{"role": "user", "content": "hi"}]
    assert "roles must alternate" in strict.ask([chat, chat])[0].error
    for wrong in ([[1, 2], [3, 4]], [(1,), (2,)]):
        with pytest.raises(ValueError, match="puzzle as an array"):
            thinker.ask(wrong)
    for trace in (3, "", b"echo"):
        with pytest.raises(ValueError, match="give True, False, or names"):
            thinker.ask("a", trace=trace)
    assert thinker.ask("ab", seed=np.int64(3), max_new_tokens=np.int64(1)).text == "a"


def test_abandoned_and_interleaved_streams(thinker):
    one, two = thinker.stream("abc", times=1), thinker.stream("xyz", times=1)
    pairs = [(a.text, b.text) for a, b in zip(one, two, strict=True) if a.kind == "word"]
    assert pairs == [("a", "x"), ("b", "y"), ("c", "z")]
    left = thinker.stream("abc")
    next(left)
    left.close()
    assert thinker.ask("abc").text == "abc"


# --------------------------------------------------------------------------------------------------
# Traces


def test_a_trace_needs_no_tokenizer(thinker, folder):
    trace = thinker.ask("ab", times=2, trace=True).trace
    assert trace.answer.tolist() == [97, 98] * 2 and trace.model == str(folder)
    assert trace.pieces == {97: "a", 98: "b"} and [s.index for s in trace.steps] == [1, 2, 3, 4]
    again = Trace.from_dict(json.loads(json.dumps(trace.to_dict())))
    assert again.to_dict() == trace.to_dict()
    assert thinker.ask("ab", trace=["echo"]).trace is not None
    assert thinker.ask("ab", logprobs=True).logprobs == (0.0, 0.0)


def test_chats_go_through_the_template(folder):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    thinker = open_thinker(folder, tokenizer=tokenizer)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    trace = thinker.ask(chat, trace=True).trace
    assert bytes(trace.question.tolist()).decode() == "[user]hi[assistant]ho[assistant]"
    assert trace.roles == [("user", 8), ("assistant", 13), ("assistant", 11)]
    assert [a.text for a in thinker.ask([chat, "x"])][1] == "x"
    with pytest.raises(ValueError, match="message 0 needs a role"):
        thinker.ask([{"content": "hi"}])
    with pytest.raises(ValueError, match="no chat template"):
        open_thinker(folder).ask(chat)


# --------------------------------------------------------------------------------------------------
# The stepping form itself


def test_lanes_sort_requests_and_keep_their_numbers():
    model = Parrot(300)
    made = []

    def engine(key):
        made.append(key)
        return Repeating(model)

    work = Lanes(lambda request: len(request.prompt), engine)
    numbers = [work.add(Request([1] * n)) for n in (2, 3, 2, 3)]
    assert numbers == [0, 1, 2, 3] and made == [2, 3]
    with pytest.raises(ValueError, match="no option"):
        work.add(Request([1], own={"x": 1}))
    with pytest.raises(ValueError, match="has not ended"):
        work.result(0)
    work.cancel(1)
    ends = [event for event in run(work) if event.kind == "end"]
    assert sorted(event.request for event in ends) == numbers
    found = [work.result(number) for number in numbers]
    assert [answer.stopped for answer in found] == ["halted", "cancelled", "halted", "halted"]
    assert [len(answer.tokens) for answer in found] == [2, 0, 2, 3] and not work.busy
    with pytest.raises(KeyError):
        work.result(0)
    assert work.add(Request([1] * 2)) == 4 and made == [2, 3, 1, 2]  # the first had gone


def test_answers_come_in_the_order_of_the_requests():
    found = answers(Repeating(Parrot(9), batch_size=1), [Request([n]) for n in (3, 1, 2)])
    assert [answer.tokens for answer in found] == [(3,), (1,), (2,)]


def test_a_model_around_which_nothing_was_saved_needs_a_tokenizer(tmp_path):
    Parrot(257).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        open_thinker(tmp_path)
    thinker = Thinker.of(Parrot(257), tokenizer=byte_tokenizer(), name="mine")
    assert thinker.ask("ab").text == "ab" and repr(thinker) == "Thinker('mine', parrot, Parrot)"
    assert np.isclose(thinker.ask("ab").cost.flops, 2.0)


@pytest.mark.parametrize("question", ["", "  ", "\n"])
def test_nothing_is_no_question_for_a_model_that_was_trained_on_questions(question):
    with pytest.raises(ValueError, match="the question is empty"):
        open_thinker("prosqa").ask(question)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"stop": 3}, "stop is 3; give a text"),
        ({"stop": True}, "stop is True"),
        ({"sampling": "greedy"}, "sampling is 'greedy'; give a Sampling"),
        ({"sampling": 1.0}, "sampling is 1.0"),
        ({"mode": []}, "mode is"),
        ({"max_steps": 10**12}, "max_steps is 1000000000000.*at most 65,536"),
        ({"effort": 10**12}, "at most 65,536"),
    ],
)
def test_what_is_of_the_wrong_kind_is_named(wrong, told):
    question = "d>b a>d c>a b>f e>j f>e g>h h>i i>c j>g | a ."
    with pytest.raises(ValueError, match=told):
        open_thinker("huginn-hops").ask(question, **wrong)
