"""How everything here thinks, seen from outside: requests go in, events come out, step by step.

    work = METHOD.begin(model)              many requests, one loop
    number = work.add(Request(prompt))      at any time, also while others are under way
    while work.busy:
        for event in work.step(): ...       one piece of work for all that are in it
    work.end_thinking(number)               it thinks no more and answers now
    work.cancel(number)                     it ends here, with what it has said
    work.result(number)                     its `Answer`, once

`ask`, `stream`, `generate` and the server are loops over this form. What a request gets does not
depend on its neighbours, nor on when it joined: its random numbers are its own, and rows that run
together only share the forward.

A method says in a `Method` what the loops must know of it: its options, its unit of effort, what
its traces can hold, and `begin`. Requests whose options exclude each other in one forward run in
lanes of their own (`Lanes`), side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from inward.common.trace import Cost, Trace

if TYPE_CHECKING:
    from inward.common.sampling import Sampling
    from inward.common.speaking import StopWords

STOPPED = ("end", "stop", "length", "context", "halted", "budget", "cancelled")
"""Why thinking ended: an end token; a stop word; max_new_tokens; the model's context; the halting
rule; the step budget, or a caller who wanted the answer so far (`end_thinking`); a caller who
wanted no more of it (`cancel`)."""

_FREE = Cost()

Kind = Literal["word", "thought", "draft", "rewrite", "end"]


@dataclass(eq=False)
class Memory:
    """What a conversation has read so far, so that its next turn reads only what is new. It belongs
    to one model, whose weights stay as they are, and to one request at a time.

    tokens: those that are kept. past: their keys and values, in the method's own form. key: of
        whom. reused: tokens that the last request took over.
    """

    tokens: list[int] = field(default_factory=list)
    past: Any = None
    key: Any = None
    reused: int = 0

    def take(self, prompt: Sequence[int], key: Any) -> int:
        """How many of the first tokens of a prompt need not be read; its last one always is."""
        most = min(len(self.tokens), len(prompt) - 1) if key == self.key else 0
        pairs = enumerate(zip(self.tokens[:most], prompt, strict=False))
        self.reused = next((place for place, (a, b) in pairs if a != b), most)
        return self.reused


@dataclass(frozen=True, eq=False)
class Request:
    """One question, ready for a method.

    prompt: what the method takes: token ids, a `Sample` with thoughts, a puzzle (cells,).
    max_new_tokens: tokens to say at most; None: the method's own default.
    sampling: how tokens are drawn; None: as the model's generation config says.
    seed: of all that is drawn for this request; None: the seed in `sampling`, or 0.
    ends: tokens that end the answer; None: those of the generation config.
    stop: words that end it; None: none.
    trace: None: no trace; else the names of what it shall hold beside the plain record.
    logprobs: keep the log-probability of every token said.
    own: options of the method, as `Method.options` names them.
    memory: what was read before, if the method `remembers`; it then holds this text too.
    """

    prompt: Any
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    seed: int | None = None
    ends: frozenset[int] | None = None
    stop: StopWords | None = None
    trace: frozenset[str] | None = None
    logprobs: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a question.

    text: the new text, without end token and stop word. tokens: with them.
    steps: in the method's unit: supervision steps, recurrences, thoughts, forwards.
    stopped: one of `STOPPED`; "" with an error.
    believed: probability of being right, from a halting head, in [0, 1]; None without one.
    logprobs: of each token, if asked for.
    trace: if asked for. error: why a question of a list has no answer.
    details: numbers and names of one method alone (candidates, votes, thoughts, ...).
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    steps: int = 0
    stopped: str = ""
    cost: Cost = _FREE
    believed: float | None = None
    logprobs: tuple[float, ...] | None = None
    trace: Trace | None = None
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happened to one request.

    kind: "word": `tokens` are said, `text` is theirs and stands (all of them joined are
        `Answer.text`); "thought": a silent step, `text` its lens if one was asked for;
        "draft": `tokens` are guessed, nothing stands; "rewrite": `tokens` are the whole answer as
        it is now; "end": `answer` is there.
    step: the request's step it belongs to, from 1. scores: named numbers of it.
    """

    kind: Kind
    request: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    step: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    answer: Answer | None = None

    def __str__(self) -> str:
        shown = self.text or " ".join(map(str, self.tokens))
        numbers = " ".join(f"{name}={value:.3g}" for name, value in self.scores.items())
        if self.answer is not None:
            shown = f"{self.answer.stopped} after {self.answer.steps} steps"
        return f"{self.step:>4} {self.kind:<8}{shown}{f'  [{numbers}]' if numbers else ''}"


class Work(Protocol):
    """Requests in work, see the top of the file."""

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        ...

    def add(self, request: Request) -> int:
        """Take a request in; returns its number. Raises ValueError before any work."""
        ...

    def step(self) -> list[Event]:
        """One piece of work; the last event of a request is its "end"."""
        ...

    def cancel(self, number: int) -> None:
        """End a request: "cancelled". Its "end" comes with the next step. One that has ended stays
        as it is."""
        ...

    def end_thinking(self, number: int) -> None:
        """A request thinks no more: a whole answer ends as it is now, a text goes on with words
        alone, or with no more thinking a word than it has done for the present one. One that has
        ended stays as it is. It may be called from another thread while a step is under way.

        Raises:
            KeyError: there is no such request. ValueError: the method has nothing to end.
        """
        ...

    def result(self, number: int) -> Answer:
        """The answer of a request that has ended; afterwards nobody knows it any more.

        Raises:
            KeyError: there is no such request. ValueError: it has not ended.
        """
        ...


@dataclass(frozen=True)
class Acts:
    """When an option does something: in words that follow "it acts", and of a model, a request and
    all its options, defaults too."""

    told: str
    under: Callable[[Any, Request, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Option:
    """An option of one method: a `default` to show, what it means in one line, and, where it can
    be written on a command line, its type. `acts`: when it does something; None: always."""

    default: Any
    about: str
    type: Any = None
    acts: Acts | None = None

    def says(self, value: Any) -> bool:
        """Whether a value is another than the default."""
        if value is None or value is self.default:
            return False
        if isinstance(self.default, tuple | Mapping) and hasattr(value, "__len__"):
            return len(value) > 0 or len(self.default) > 0
        return not (type(value) is type(self.default) and value == self.default)

    @property
    def kind(self) -> Any:
        """Its type, where it can be written down (in words or as JSON), else None."""
        written = isinstance(self.default, bool | int | float | str)
        return self.type or (type(self.default) if written else None)


Prepare = Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Method:
    """What the loops must know of a method.

    begin: (model, **sizes) -> Work; sizes are what a server chooses, such as `batch_size`.
    options: what a request may say in `own`.
    unit: which of the options an effort sets, and the name of one of it: ("max_steps",
        "recurrences"); None: there is no dial, and `why_no_effort` says why.
    steps: what `Answer.steps` counts.
    budget: which of the options bounds the thinking, and what it counts; None: nothing to bound.
    silent: options under which it answers without thinking, {} if it never thinks; None: it always
        does.
    traces: what a trace can hold beside the plain record.
    reads: "text" or "puzzle".
    prepare: (model, tokens, ask, own) -> (prompt, options): what `Request.prompt` shall be for the
        tokens of a question, and options that follow from how the model was trained to be asked
        (`ask`, as saved with it) where `own` does not say otherwise; None: the tokens themselves,
        and ask["own"].
    remembers: whether a request's `memory` acts.
    """

    name: str
    begin: Callable[..., Work]
    options: Mapping[str, Option]
    traces: tuple[str, ...] = ()
    unit: tuple[str, str] | None = None
    why_no_effort: str = ""
    steps: str = "steps"
    budget: tuple[str, str] | None = None
    silent: Mapping[str, Any] | None = None
    reads: Literal["text", "puzzle"] = "text"
    prepare: Prepare | None = None
    remembers: bool = False

    def idle(self, model: Any, request: Request) -> list[str]:
        """Options of a request that are given and would do nothing."""
        return idle(self.options, model, request)

    def check_acts(self, model: Any, request: Request) -> None:
        """Raise a ValueError that names the options of a request which would do nothing."""
        check_acts(self.name, self.options, model, request)

    def check_options(self, own: Mapping[str, Any], others: Sequence[Method] = ()) -> None:
        """Raise a ValueError that names every option that is not this method's, and whose it is."""
        check_options(self.name, self.options, own, others)


def idle(options: Mapping[str, Option], model: Any, request: Request) -> list[str]:
    """See `Method.idle`."""
    asked = [
        (name, option.acts)
        for name, value in request.own.items()
        if (option := options.get(name)) is not None
        and option.acts is not None
        and option.says(value)
    ]
    if not asked:
        return []
    given = {name: value for name, value in request.own.items() if value is not None}
    whole = {name: option.default for name, option in options.items()} | given
    return [name for name, acts in asked if not acts.under(model, request, whole)]


def check_acts(name: str, options: Mapping[str, Option], model: Any, request: Request) -> None:
    """See `Method.check_acts`."""
    if names := idle(options, model, request):
        told = [
            f"{option}={request.own[option]!r} would do nothing: it acts {acts.told}"
            for option in names
            if (acts := options[option].acts) is not None
        ]
        raise ValueError(f"{name}: {'; '.join(told)}. Leave it out")


def check_options(
    name: str, options: Mapping[str, Option], own: Mapping[str, Any], others: Sequence[Method] = ()
) -> None:
    """See `Method.check_options`."""
    wrong = sorted(set(own) - set(options))
    if not wrong:
        return
    told = []
    for option in wrong:
        owners = [m.name for m in others if option in m.options]
        told.append(f"{option} (of {', '.join(owners)})" if owners else option)
    raise ValueError(
        f"{name} has no option {', '.join(told)}; it has {', '.join(options) or 'none of its own'}"
    )


def is_never(halt: Any) -> bool:
    """Whether a halting rule, or its name, ends nothing."""
    return type(halt).__name__ == "Never" or (isinstance(halt, str) and halt == "never")


class Lanes:
    """Work that sorts requests into lanes: those with equal keys run in one engine together.

    Args:
        key: of a request; what must be equal for two to share a forward.
        engine: key -> a `Work` for requests of that key alone.

    A lane goes when its last request has ended; every lane that has work does a piece of it in a
    step. A processor of a request (`sampling`) that raises, or leaves nothing to draw from, ends
    that request with an error, and no other.
    """

    def __init__(self, key: Callable[[Request], Hashable], engine: Callable[[Any], Work]):
        self._key, self._engine = key, engine
        self._lanes: dict[Hashable, Work] = {}
        self._places: dict[int, tuple[Hashable, int]] = {}
        self._numbers: dict[tuple[Hashable, int], int] = {}
        self._found: list[Event] = []  # events of lanes before one that raised
        self._guards: dict[int, Sequence[Any]] = {}  # of requests with processors of their own
        self._wrong: dict[int, Exception] = {}
        self._next = 0

    @property
    def busy(self) -> bool:
        """See `Work`."""
        return bool(self._found) or any(lane.busy for lane in self._lanes.values())

    def add(self, request: Request) -> int:
        """See `Work`."""
        if not isinstance(request, Request):
            raise ValueError(f"{request!r} is no Request; make one of a question, see `Request`")
        key = self._key(request)
        try:
            lane = self._lanes.get(key) or self._engine(key)
        except TypeError:  # an option that has no hash, which the lane will refuse by name
            lane = self._engine(key)
        request, guards = _guarded(request)
        place = (key, lane.add(request))  # may refuse: nothing is kept before
        self._lanes[key] = lane
        number, self._next = self._next, self._next + 1
        self._places[number], self._numbers[place] = place, number
        if guards:
            self._guards[number] = guards
        return number

    def step(self) -> list[Event]:
        """See `Work`."""
        for key, lane in list(self._lanes.items()):
            if lane.busy:
                for event in lane.step():
                    number = self._numbers[key, event.request]
                    same = number == event.request  # as in a lane that is alone
                    self._found.append(event if same else replace(event, request=number))
        if self._guards:
            self._mind_the_guards()
        found, self._found = self._found, []
        return found

    def _mind_the_guards(self) -> None:
        """Requests whose processor has failed are over, and what they said with it was not said."""
        for number, guards in self._guards.items():
            wrong = next((guard.wrong for guard in guards if guard.wrong is not None), None)
            if wrong is not None and number not in self._wrong:
                self._wrong[number] = wrong
                self.cancel(number)
        if not self._wrong:
            return
        kept = [e for e in self._found if e.kind == "end" or e.request not in self._wrong]
        self._found = [
            replace(e, answer=_failed(e.answer, self._wrong[e.request]))
            if e.answer is not None and e.request in self._wrong
            else e
            for e in kept
        ]

    def cancel(self, number: int) -> None:
        """See `Work`."""
        key, inner = self._place(number)
        self._lanes[key].cancel(inner)

    def end_thinking(self, number: int) -> None:
        """See `Work`."""
        key, inner = self._place(number)
        self._lanes[key].end_thinking(inner)

    def result(self, number: int) -> Answer:
        """See `Work`."""
        place = self._place(number)
        answer = self._lanes[place[0]].result(place[1])
        if (wrong := self._wrong.pop(number, None)) is not None:
            answer = _failed(answer, wrong)
        self._guards.pop(number, None)
        del self._places[number], self._numbers[place]
        if not any(key == place[0] for key, _ in self._numbers):
            del self._lanes[place[0]]
        return answer

    def _place(self, number: int) -> tuple[Hashable, int]:
        if number not in self._places:
            raise KeyError(f"there is no request {number}")
        return self._places[number]


def _guarded(request: Request) -> tuple[Request, Sequence[Any]]:
    if not getattr(request.sampling, "processors", ()):  # what is no Sampling the lane refuses
        return request, ()
    from inward.common.sampling import guarded

    sampling, guards = guarded(request.sampling)
    return replace(request, sampling=sampling), guards


def _failed(answer: Answer, wrong: Exception) -> Answer:
    """The end of a request whose own function went wrong: what it took, and why."""
    told = str(wrong) if isinstance(wrong, ValueError) else f"{type(wrong).__name__}: {wrong}"
    return Answer(steps=answer.steps, cost=answer.cost, error=told, details={"exception": wrong})


def stood(answer: Answer) -> Answer:
    """The answer; of a request that failed the exception."""
    if answer.error is not None:
        raise answer.details.get("exception") or ValueError(answer.error)
    return answer


def run(work: Work) -> Iterator[Event]:
    """All events until nothing is left to do."""
    while work.busy:
        yield from work.step()


def answers(work: Work, requests: Sequence[Request]) -> list[Answer]:
    """Run requests together; their answers in order. Raises what one of them failed with."""
    numbers = [work.add(request) for request in requests]
    for _ in run(work):
        pass
    return [stood(work.result(number)) for number in numbers]
