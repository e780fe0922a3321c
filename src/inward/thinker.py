"""One verb: ask. A model, its processor, and how it was trained to be asked.

    thinker = inward.open("sudoku9")
    answer = thinker.ask(puzzle, effort="high", trace=True)
    for event in inward.open("prosqa").stream("..."): print(event)

`ask` and `stream` are loops over the stepping form (`inward.common.thinking`): nothing here knows
how a method thinks. A `Thinker` holds no state between calls and changes nothing of its model.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inward import hub
from inward.common.speaking import Speaker, StopWords
from inward.common.thinking import Answer, Event, Memory, Method, Request, Work, stood
from inward.tasks.asked import AskedQuestion
from inward.tasks.processors import Processor, processor_for, processor_of

if TYPE_CHECKING:
    import torch

    from inward.common.sampling import Sampling

EFFORTS = ("low", "medium", "high")
"""Words for saved points on the frontier of accuracy against cost."""


def open_thinker(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    base: Any = None,
    tokenizer: Any = None,
) -> Thinker:
    """Open a model to ask it: `inward.open`.

    Args:
        name: a shipped model's name, the folder of a run or of a saved model, or of any causal LM
            (which then decodes plainly).
        device, dtype: where and how its weights lie; default: CPU, as saved.
        base: the model below an adapter (Coconut, TiDAR), or its folder.
        tokenizer: an object or a folder, instead of the model's own.

    Raises:
        FileNotFoundError: there is no such model, or nothing that turns text into tokens.
        ValueError: weights or files that do not fit.
    """
    if not isinstance(name, str | Path) or not str(name):
        known = ", ".join(hub.shipped())
        raise ValueError(f"name is {name!r}; give a folder, or a shipped model: {known}")
    folder = find_model(name)
    options: dict[str, Any] = {} if base is None else {"base": base}
    packed = folder.suffix == ".gguf"
    if base is not None and (packed or hub.method_of(folder) not in ("coconut", "tidar")):
        raise ValueError(f"{name} is no adapter, so it has no use for base={base!r}")
    _check_base(base)
    if dtype is not None:
        options["dtype"] = _dtype(dtype)
    if packed:
        from inward.common.bases import open_base

        with hub.quiet():
            model, own = open_base(name, **options)
        folder, tokenizer = None, own if tokenizer is None else tokenizer
    else:
        model = hub.load(folder, **options)
    if device is not None:
        _move(model, device)
    return Thinker.of(model, folder=folder, name=str(name), tokenizer=tokenizer)


def _check_base(base: Any) -> None:
    if not (base is None or isinstance(base, str | Path) or hasattr(base, "get_input_embeddings")):
        raise ValueError(f"base is {base!r:.60}; give the model below the adapter, or its folder")


def _dtype(dtype: Any) -> Any:
    import torch

    known: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; give torch.float32, torch.bfloat16, ...")
    return known


def _move(model: Any, device: Any) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise ValueError(f"device is {device!r}, and the model cannot go there: {told}") from error


def find_model(name: str | Path) -> Path:
    """A model's folder, or that of a base which `inward.common.bases` knows by name.

    Raises FileNotFoundError: there is none.
    """
    try:
        return hub.resolve(name)
    except FileNotFoundError:
        from inward.common.bases import find_base

        try:
            return find_base(str(name))
        except FileNotFoundError:
            pass
        raise


@dataclass(frozen=True)
class Effort:
    """Measured points, as `inward effort` saves them.

    points: word -> options, with their accuracy, its interval and their cost beside them.
    why_not: why there are none: the options tried differ by less than noise.
    """

    points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class _How:
    """What `ask` was told beside the question, checked."""

    max_new_tokens: int | None
    sampling: Sampling | None
    stop: tuple[str, ...]
    trace: frozenset[str] | None
    logprobs: bool
    own: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Thinker:
    """A model that can be asked.

    ask_as: how it was trained to be asked, as saved with it: {"own": options, ...}.
    """

    model: Any
    method: Method
    processor: Processor
    name: str = ""
    ask_as: Mapping[str, Any] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)

    @staticmethod
    def of(
        model: Any, *, folder: Path | None = None, name: str = "", tokenizer: Any = None
    ) -> Thinker:
        """A thinker around a model that is loaded already.

        Args:
            folder: of its files, for what is not given; None: a tokenizer must be.

        Raises:
            FileNotFoundError: nothing turns text into tokens.
        """
        about = {} if folder is None else _about(folder, model)
        method = hub.door(_row_of(model))
        place = Path() if folder is None else folder
        spec = about.get("processor", {"kind": "tokenizer"})
        if tokenizer is not None and method.reads == "puzzle":
            raise ValueError(f"{name or method.name} reads puzzles and has no use for a tokenizer")
        processor = processor_of(spec, place, model=model, tokenizer=tokenizer)
        saved = about.get("effort", {})
        effort = Effort(saved.get("points", {}), saved.get("why_not", ""))
        return Thinker(model, method, processor, name, about.get("ask", {}), effort)

    def __repr__(self) -> str:
        return f"Thinker({self.name!r}, {self.method.name}, {type(self.model).__name__})"

    # -- asking

    def ask(
        self,
        question: Any,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        effort: int | str | None = None,
        trace: bool | str | Iterable[str] = False,
        logprobs: bool = False,
        **own: Any,
    ) -> Any:
        """Ask one question, or a list of them.

        Args:
            question: a text; a list of message dicts (one chat); a puzzle as text, array or tensor;
                or a list of such questions.
            max_new_tokens: tokens to say at most.
            sampling: how tokens are drawn; default: as the model's generation config says.
            seed: of all that is drawn: one for every question, or one each; default: the
                sampling's, or 0.
            stop: texts that end an answer, which does not hold them.
            effort: an int in the method's own unit, or "low", "medium", "high": points measured on
                validation data and saved with the model.
            trace: True, or names of what it shall hold beside the plain record.
            logprobs: of every token said.
            own: options of the method (`thinker.method.options`).

        Returns:
            One `Answer`, or a list of them in the order of the questions. A bad question in a list
            has an answer with an `error`; the others are answered.

        Raises:
            ValueError: a bad question or option, before any work.
        """
        how = self._how(max_new_tokens, sampling, stop, effort, trace, logprobs, own)
        many = _is_many(question)
        questions = list(question) if many else [question]
        seeds = _seeds(seed, len(questions))
        if not many:
            return self._answers([self._question(question, how, seeds[0])])[0]
        ready: list[Any] = []
        for each, own_seed in zip(questions, seeds, strict=True):
            try:
                ready.append(self._question(each, how, own_seed))
            except ValueError as error:
                ready.append(Answer(error=str(error)))
        return self._answers(ready)

    def stream(
        self,
        question: Any,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        effort: int | str | None = None,
        trace: bool | str | Iterable[str] = False,
        logprobs: bool = False,
        memory: Memory | None = None,
        **own: Any,
    ) -> Generator[Event, None, None]:
        """Ask one question and get what happens as it happens; see `ask` for the arguments.

        The texts of the "word" events joined are `answer.text`; what could still change (half a
        character, the beginning of a stop word) is held back. The last event, "end", carries the
        `Answer`. Closing the iterator ends the work.

        Args:
            memory: of a conversation, a new `Memory` at its beginning: what this question shares
                with the one before, from its first token on, is not read again. The answer is the
                same; `details["reused"]` tells how many of `num_prompt` tokens.

        Raises:
            ValueError: a bad question or option, at the call and not at the first event.
        """
        if _is_many(question):
            raise ValueError(f"stream takes one question, not {len(question)}; ask takes a list")
        how = self._how(max_new_tokens, sampling, stop, effort, trace, logprobs, own)
        asked = self._question(question, how, _seeds(seed, 1)[0])
        if memory is not None:
            if not self.method.remembers:
                raise ValueError(f"{self.method.name} reads every question anew; give no memory")
            asked = replace(asked, request=replace(asked.request, memory=memory))
        work = self.begin()
        number = work.add(asked.request)
        return self._stream(work, number, asked)

    def begin(self, **sizes: Any) -> Work:
        """The method's work around this model, for loops of one's own; see `request` for what to
        add to it."""
        return self.method.begin(self.model, **sizes)

    def request(self, question: Any, *, seed: int | None = None, **options: Any) -> Request:
        """What `ask` would add to the work for this question; options as of `ask`."""
        return self.asked(question, seed=seed, **options).request

    def asked(
        self,
        question: Any,
        *,
        seed: int | None = None,
        usual: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AskedQuestion:
        """The question read and checked, for loops that tell events and answers as `stream` does:
        its `request` is for the work, its `told` and `finished` make texts of what comes back.

        usual: options of the method where the caller says nothing; those without anything to do
            are left out.
        """
        names = ("max_new_tokens", "sampling", "stop", "effort", "trace", "logprobs")
        known = {name: options.pop(name) for name in names if name in options}
        how = self._how(**known, own=options)
        return self._question(question, how, _seeds(seed, 1)[0], usual or {})

    def check(self, **options: Any) -> None:
        """Raise the ValueError that `ask` would raise for options which no question could take: of
        another method, an effort that is not there, a trace without such a name."""
        names = ("max_new_tokens", "sampling", "stop", "effort", "trace", "logprobs")
        known = {name: options.pop(name) for name in names if name in options}
        self._how(**known, own=options)

    # -- on the way in

    def _how(
        self,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        effort: int | str | None = None,
        trace: bool | str | Iterable[str] = False,
        logprobs: bool = False,
        own: Mapping[str, Any] = MappingProxyType({}),
    ) -> _How:
        """What is asked of every question alike, checked."""
        self.method.check_options(own, [m for m in hub.doors() if m.name != self.method.name])
        words = _words(stop)
        if sampling is not None and not hasattr(sampling, "rule"):  # (importing it is slow)
            raise ValueError(f"sampling is {sampling!r:.60}; give a Sampling, or None")
        if not isinstance(logprobs, bool):
            raise ValueError(f"logprobs is {logprobs!r}; give True for those of every token said")
        if max_new_tokens is not None and (not _whole(max_new_tokens) or max_new_tokens < 1):
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}, must be an int of 1 or more")
        if self.method.reads == "puzzle" and (max_new_tokens is not None or words or sampling):
            raise ValueError(
                f"{self.method.name} rewrites a whole answer: it has no max_new_tokens, no "
                "sampling and no stop words; its budget is effort, or max_steps"
            )
        if max_new_tokens is None and self.method.reads == "text":
            max_new_tokens = self.ask_as.get("max_new_tokens")
        chosen = self._effort(effort, own) | dict(own)
        return _How(max_new_tokens, sampling, words, self._traced(trace), logprobs, chosen)

    def _question(
        self, question: Any, how: _How, seed: int | None, usual: Mapping[str, Any] | None = None
    ) -> AskedQuestion:
        """One question, read and ready."""
        prompt = self.processor.read(question)
        if self.method.prepare is None:
            tokens, trained = prompt.tokens, dict(self.ask_as.get("own", {}))
        else:
            tokens, trained = self.method.prepare(self.model, prompt.tokens, self.ask_as, how.own)

        def decode(ids: Sequence[int]) -> str:
            return self.processor.write(ids, prompt)

        stops = StopWords(how.stop, decode) if how.stop else None
        request = Request(
            prompt=tokens,
            max_new_tokens=how.max_new_tokens,
            sampling=how.sampling,
            seed=seed,
            stop=stops,
            trace=how.trace,
            logprobs=how.logprobs,
            own=trained | dict(prompt.own) | dict(usual or {}) | dict(how.own),
        )
        # what belongs to the training and has nothing to do under the caller's options goes
        gone = [name for name in self.method.idle(self.model, request) if name not in how.own]
        own = {name: value for name, value in request.own.items() if name not in gone}
        request = replace(request, own=self.processor.options(own, prompt, seed or 0))
        speaker = Speaker(decode, stops, self.processor.unsettled)
        return AskedQuestion(prompt, request, speaker, self.processor, self.name)

    def _effort(self, effort: Any, own: Mapping[str, Any]) -> dict[str, Any]:
        """The options that an effort stands for."""
        if effort is None:
            return {}
        if isinstance(effort, Integral) and not isinstance(effort, bool):
            effort = int(effort)  # numpy's too
        if isinstance(effort, bool) or not isinstance(effort, int | str):
            raise ValueError(
                f"effort is {effort!r}; give an int in the method's own unit"
                f"{f' ({self.method.unit[1]})' if self.method.unit else ''}, or one of "
                f"{', '.join(EFFORTS)}"
            )
        if self.method.unit is None:
            raise ValueError(f"{self.name or self.method.name}: {self.method.why_no_effort}")
        option, unit = self.method.unit
        if isinstance(effort, int):
            if effort < 1:
                raise ValueError(f"effort is {effort}; it counts {unit}, from 1 on")
            chosen: Mapping[str, Any] = {option: effort}
        elif effort not in EFFORTS:
            raise ValueError(f"effort is {effort!r}; the words are {', '.join(EFFORTS)}")
        elif effort not in self.effort.points:
            why = self.effort.why_not or (
                "nobody has measured its points; do so with `inward effort`, or give an int "
                f"({unit})"
            )
            raise ValueError(f"{self.name or self.method.name} has no effort {effort!r}: {why}")
        else:
            chosen = self.effort.points[effort]["own"]
        if both := sorted(set(chosen) & set(own)):
            raise ValueError(
                f"effort {effort!r} sets {', '.join(both)}, which is given too; leave one out"
            )
        return dict(chosen)

    def _traced(self, trace: Any) -> frozenset[str] | None:
        if trace is False or trace is None:
            return None
        if trace is True:
            return frozenset()
        if not isinstance(trace, str | list | tuple | set | frozenset) or not trace:
            raise ValueError(f"trace is {trace!r}; give True, False, or names")
        names = frozenset([trace] if isinstance(trace, str) else trace)
        if unknown := sorted(map(str, names - set(self.method.traces))):
            raise ValueError(
                f"{self.method.name} traces have no {', '.join(unknown)}; beside the plain record "
                f"(trace=True) there is {', '.join(self.method.traces) or 'nothing'}"
            )
        return names

    # -- the loops

    def _answers(self, ready: Sequence[AskedQuestion | Answer]) -> list[Answer]:
        """Run what is ready together; answers in order."""
        found: list[Answer | None] = [a if isinstance(a, Answer) else None for a in ready]
        work, places = self.begin(), {}
        alone = len(ready) == 1
        for place, asked in enumerate(ready):
            if isinstance(asked, Answer):
                continue
            try:
                places[work.add(asked.request)] = place
            except ValueError as error:
                if alone:
                    raise
                found[place] = Answer(error=str(error))
        started = time.perf_counter()
        while work.busy:
            for event in work.step():
                if event.kind == "end":
                    place = places[event.request]
                    asked = ready[place]
                    assert isinstance(asked, AskedQuestion)
                    answer = work.result(event.request)
                    found[place] = asked.finished(answer, time.perf_counter() - started)
        assert all(answer is not None for answer in found), "a question was left unanswered"
        if alone and found[0] is not None:
            stood(found[0])
        return [answer for answer in found if answer is not None]

    @staticmethod
    def _stream(work: Work, number: int, asked: AskedQuestion) -> Generator[Event, None, None]:
        started = time.perf_counter()
        while work.busy:
            events, answer = work.step(), None
            if any(event.kind == "end" for event in events):
                found = stood(work.result(number))
                answer = asked.finished(found, time.perf_counter() - started)
            yield from asked.told(events, answer)


# --------------------------------------------------------------------------------------------------
# Small questions


def _is_many(question: Any) -> bool:
    """A list or tuple of questions; one chat is a list of dicts."""
    if not isinstance(question, list | tuple):
        return False
    if not question:
        raise ValueError("there is no question; the list is empty")
    rows = question if all(isinstance(item, list | tuple) and item for item in question) else ()
    if all(isinstance(item, int) for item in question) or (
        rows and all(isinstance(cell, int) for row in rows for cell in row)
    ):
        raise ValueError("a list of numbers is no question; give a puzzle as an array or a text")
    return not all(isinstance(item, Mapping) for item in question)


def _seeds(seed: int | Sequence[int] | None, num: int) -> list[int | None]:
    seeds: list[int | None] = list(seed) if isinstance(seed, Sequence) else [seed] * num
    if len(seeds) != num:
        raise ValueError(f"{len(seeds)} seeds for {num} questions; give one, or one each")
    if any(s is not None and (not _whole(s) or s < 0) for s in seeds):
        raise ValueError(f"seed is {seed!r}; seeds are ints from 0 on")
    return seeds


def _whole(value: Any) -> bool:
    """An int, or one of numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _words(stop: str | Sequence[str]) -> tuple[str, ...]:
    if stop is not None and not isinstance(stop, str | Sequence | Set):
        raise ValueError(f"stop is {stop!r:.60}; give a text, or a list of texts")
    words = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"stop is {stop!r}; give texts that are not empty")
    return words


def _row_of(model: Any) -> str:
    """The row of `hub.METHODS` that a model belongs to."""
    name = type(model).__name__
    rows = [key for key, row in hub.METHODS.items() if row.model.endswith(f":{name}")]
    return rows[0] if rows else "plain"


def _about(folder: Path, model: Any) -> dict[str, Any]:
    """inward.json; for models saved before there was one, what their recipe tells."""
    about = hub.read_about(folder)
    if "processor" in about:
        return about
    from inward.recipes.of import recipe_of

    try:
        recipe = recipe_of(folder)
    except FileNotFoundError:
        return about
    return about_of(recipe, model) | about


def about_of(recipe: Any, model: Any) -> dict[str, Any]:
    """What a recipe tells of how its models are asked: processor and "ask" of inward.json."""
    task = getattr(recipe, "task", None) if getattr(recipe, "has_task", True) else None
    processor = None if task is None else processor_for(task())
    spec = {"kind": "tokenizer"} if processor is None else processor.to_dict()
    asked = getattr(recipe, "asked", None)
    said = {} if asked is None else dict(asked(model))
    if "after" in said:
        spec["after"] = said.pop("after")
    return {"processor": spec, "ask": said}
