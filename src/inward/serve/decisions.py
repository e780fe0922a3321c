"""Typed decisions: questions about a state, and a probability for every answer that is allowed.

The body and the answers are those of System One (`/v1/systemone` of transformers and llama.cpp):

    noul      yes or no; the probability of yes
    choice    one of `criteria`, which are names with descriptions
    score     one of `criteria`, which are levels, the lowest first

What a model is asked depends on what it reads:

    a puzzle          the state is the puzzle, and each question a cell, r2c5: row 2, column 5
    conversations     a message of our own wording; the answers have letters, noul has Yes and No
    single texts      the state is the text as the model was trained to be asked, or to be gone on
                      with; the answers are what it would say: their names
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StringConstraints
from torch import Tensor

from inward.common.sampling import Sampling
from inward.common.thinking import Answer
from inward.serve.errors import ApiError
from inward.serve.schemas import Effort, OwnWay, Share, Strict, Text
from inward.tasks.processors import PuzzleProcessor
from inward.thinker import Thinker

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Content = Text | dict[str, Any] | list[Any]
Levels = Annotated[list[Content], Field(min_length=1, max_length=64)]
Choices = Annotated[dict[Name, Content | None], Field(min_length=1, max_length=64)]


class NoulQuestion(Strict):
    """Yes or no; criteria: what each of them means."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: dict[Literal["true", "false"], Content | None] | None = None


class ChoiceQuestion(Strict):
    """One of several; criteria: their names and what these mean."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: Choices


class ScoreQuestion(Strict):
    """A level; criteria: all levels, the lowest first."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: Levels


Asked = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class DecisionBody(Strict):
    """POST /v1/systemone

    questions: by names of the caller's; of a puzzle by cells, and none: a choice for each blank.
    assets: images, of which no model here takes any.
    The last three are ours, as on the other routes.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    state: Content
    questions: Annotated[dict[Name, Asked], Field(min_length=1, max_length=1024)] | None = None
    assets: Annotated[dict[str, Any], Field(max_length=0)] = Field(default_factory=dict)
    reasoning_effort: Effort | Share | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    inward: OwnWay | None = None


@dataclass(frozen=True)
class Decision:
    """A question: what may be answered.

    options: names in order; meanings: of each, or None. labels: what stands for them in a text.
    """

    name: str
    kind: Literal["noul", "choice", "score"]
    options: tuple[str, ...]
    meanings: tuple[Any, ...]
    labels: tuple[str, ...]
    instructions: Any = None

    @staticmethod
    def of(name: str, asked: Any, *, spoken: bool) -> Decision:
        """From a body. spoken: the answers are what the model would say, not letters.

        Raises:
            ApiError: more answers than letters; descriptions where nothing would read them.
        """
        if asked.type == "score":
            options: Sequence[str] = [str(level) for level in range(len(asked.criteria))]
            meanings = list(asked.criteria)
        else:
            given = asked.criteria or {}
            options = ["true", "false"] if asked.type == "noul" else list(given)
            meanings = [given.get(option) for option in options]
        if spoken:
            labels = _said(name, asked, options, meanings)
        else:
            labels = ["Yes", "No"] if asked.type == "noul" else list(string.ascii_uppercase)
        if len(labels) < len(options):
            raise ApiError(
                400, f"{name!r} has {len(options)} answers; there are letters for {len(labels)}"
            )
        used = tuple(labels[: len(options)])
        return Decision(name, asked.type, tuple(options), tuple(meanings), used, asked.instructions)

    def message(self, state: Any) -> str:
        """What a model that reads conversations is asked."""
        rows = [_text(self.instructions)] if self.instructions is not None else []
        for label, option, meaning in zip(self.labels, self.options, self.meanings, strict=True):
            name = [option] if self.kind == "choice" else []
            told = ": ".join([*name, *([] if meaning is None else [_text(meaning)])])
            if told:
                rows.append(f"{label}{':' if self.kind == 'noul' else ')'} {told}")
        if self.kind == "noul":
            rows.append("Say Yes or No, and nothing else.")
        else:
            what = "level" if self.kind == "score" else "answer"
            rows.append(f"Say the letter of the right {what}, and nothing else.")
        return "\n".join([_text(state), "", *rows])

    def answer(self, shares: Sequence[float]) -> dict[str, Any]:
        """The reply, from the probability of each answer."""
        p = np.asarray(shares, dtype=np.float64)
        by_name = dict(zip(self.options, p.tolist(), strict=True))
        if self.kind == "noul":
            return {"type": "noul", "noul": by_name["true"]}
        best, num = int(p.argmax()), len(p)
        if self.kind == "choice":
            # 0 where all are alike, 1 where one has it all
            sure = 1.0 if num == 1 else (p[best] * num - 1) / (num - 1)
            told: dict[str, Any] = {"choice": self.options[best]}
        else:
            # how far from the best level, beside levels that are all alike
            levels = np.arange(num)
            spread = np.abs(levels - (num - 1) / 2).mean()
            sure = 1.0 if num == 1 else 1 - (p * np.abs(levels - best)).sum() / spread
            told = {"score": float((p * levels).sum())}
            told["legend"] = dict(zip(self.options, self.meanings, strict=True))
        told |= {"confidence": float(np.clip(sure, 0.0, 1.0)), "probabilities": by_name}
        return {"type": self.kind} | told


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _said(name: str, asked: Any, options: Sequence[str], meanings: Sequence[Any]) -> list[str]:
    """What a model says for each answer, where nothing but the state is read."""
    if asked.instructions is not None:
        raise ApiError(400, f"{name!r}: this model reads the state alone; leave instructions out")
    if asked.type == "score":
        if not all(isinstance(level, str) and level for level in meanings):
            raise ApiError(400, f"{name!r}: each level is a word that this model would say")
        return list(meanings)
    if any(meaning is not None for meaning in meanings):
        raise ApiError(
            400, f"{name!r}: this model reads the state alone; criteria can only be null"
        )
    return list(options)


# --------------------------------------------------------------------------------------------------
# Puzzles

_CELL = re.compile(r"r(\d{1,3})c(\d{1,3})")


@dataclass(frozen=True)
class PuzzleDecisions:
    """Cells of a puzzle: which, and which tokens may stand in each."""

    cells: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    decisions: tuple[Decision, ...]

    @staticmethod
    def of(thinker: Thinker, cells: Any, body: DecisionBody) -> PuzzleDecisions:
        """Of a puzzle that has been read (L,).

        Raises:
            ApiError: a name that is no cell, a cell that is given, an answer that no cell takes.
        """
        processor = thinker.processor
        assert isinstance(processor, PuzzleProcessor)
        blank, open_tokens = _open(processor)
        signs = {processor.piece(token): token for token in open_tokens}
        asked = body.questions
        columns = _columns(thinker, body, len(cells))
        names = {
            f"r{cell // columns + 1}c{cell % columns + 1}": cell
            for cell in range(len(cells))
            if cells[cell] == blank
        }
        if asked is None:
            every = ChoiceQuestion(type="choice", criteria=dict.fromkeys(signs))
            asked = dict.fromkeys(names, every)
        found = []
        for name, question in asked.items():
            if name not in names:
                raise ApiError(400, _no_cell(name, columns, len(cells)))
            if question.type != "choice":
                raise ApiError(400, f"{name!r}: a cell is a choice, not a {question.type}")
            decision = Decision.of(name, question, spoken=True)
            if wrong := [option for option in decision.options if option not in signs]:
                raise ApiError(
                    400, f"{name!r} cannot be {wrong[0]!r}; a cell is one of {', '.join(signs)}"
                )
            found.append((names[name], tuple(signs[o] for o in decision.options), decision))
        return PuzzleDecisions(*map(tuple, zip(*found, strict=True))) if found else _NONE

    def answers(self, answer: Answer) -> dict[str, Any]:
        """From the grid that the chosen chain ended with."""
        if answer.trace is None or not answer.trace.steps:
            raise ApiError(500, "the model ended before its first step")
        shares = answer.trace.steps[-1].arrays["shares"]
        rows = zip(self.cells, self.tokens, self.decisions, strict=True)
        told = {}
        for cell, tokens, decision in rows:
            # among these; none of them may be so unlikely that nothing is left to share
            own = np.maximum(shares[cell, list(tokens)].astype(np.float64), 1e-30)
            told[decision.name] = decision.answer(own / own.sum())
        return told


_NONE = PuzzleDecisions((), (), ())


def _open(processor: PuzzleProcessor) -> tuple[int, tuple[int, ...]]:
    """The token of a blank, and those that may take its place."""
    name = processor.task.name
    if name.startswith("sudoku"):
        return 1, tuple(range(2, processor.task.n + 2))
    if name.startswith("maze"):
        free, path = (_token_of(processor, sign) for sign in " o")
        return free, (free, path)
    raise ApiError(400, f"{name} has no blanks to decide; ask for the grid at /v1/solve")


def _token_of(processor: PuzzleProcessor, sign: str) -> int:
    return next(t for t in range(processor.task.vocab_size) if processor.piece(t) == sign)


def _columns(thinker: Thinker, body: DecisionBody, num: int) -> int:
    """Of the grid: as the puzzle was written, else as the model knows it."""
    state: Any = body.state
    rows = state.strip().splitlines() if isinstance(state, str) else state
    if len(rows) > 1 and not isinstance(rows[0], int) and num % len(rows) == 0:
        return num // len(rows)
    assert isinstance(thinker.processor, PuzzleProcessor)
    return int(thinker.processor.task.grid[1])


def _no_cell(name: str, columns: int, num: int) -> str:
    found = _CELL.fullmatch(name)
    last = f"r{num // columns}c{columns}"
    if found is None:
        return f"{name!r} is no cell; a question is one of r1c1 to {last}"
    row, column = map(int, found.groups())
    if not (1 <= row <= num // columns and 1 <= column <= columns):
        return f"{name!r} lies outside; the last cell is {last}"
    return f"{name!r} is given, so there is nothing to decide"


# --------------------------------------------------------------------------------------------------
# Texts


@dataclass(eq=False)
class LabelReader:
    """A logits processor that changes nothing and keeps the scores of some tokens, by the text
    before them; of one request.

    tokens: of the labels.
    """

    tokens: Sequence[int]
    seen: dict[int, tuple[list[int], Tensor]] = field(default_factory=dict)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, length) ids and (1, V) scores -> the scores."""
        prefix = input_ids[0].tolist()
        self.seen[len(prefix)] = prefix, scores[0, list(self.tokens)].double()
        return scores

    def sampling(self) -> Sampling:
        """Greedy, and read."""
        return Sampling(processors=(self,))

    def shares(self, answer: Answer) -> tuple[list[float], int]:
        """Probability of each label where the answer's last word was said, and how many tokens came
        before it. Drafts may have been judged beyond it: the place is found by what was said.

        Raises:
            ApiError: nothing was said, or not word by word.
        """
        words = list(answer.tokens[:-1] if answer.stopped == "end" else answer.tokens)
        before = words[:-1]
        for length in sorted(self.seen) if words else ():
            prefix, scores = self.seen[length]
            if prefix[len(prefix) - len(before) :] == before:
                return scores.softmax(-1).tolist(), len(before)
        raise ApiError(400, "the model came to no word whose probability could be read")


def label_tokens(thinker: Thinker, prompt: Sequence[int], decision: Decision) -> list[int]:
    """The token of each label, as it stands behind a prompt, or behind a blank.

    Raises:
        ApiError: a label of several tokens, or two with one token.
    """
    found = [_label_token(thinker, prompt, label) for label in decision.labels]
    wrong = [label for label, t in zip(decision.labels, found, strict=True) if t is None]
    if wrong:
        raise ApiError(
            400,
            f"{decision.name!r}: {', '.join(map(repr, wrong))} is not one token of this model, so "
            "it has no probability of its own",
        )
    tokens = [token for token in found if token is not None]
    if len(set(tokens)) < len(tokens):
        raise ApiError(400, f"{decision.name!r}: two answers are the same token of this model")
    return tokens


def _label_token(thinker: Thinker, prompt: Sequence[int], label: str) -> int | None:
    processor: Any = thinker.processor
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:  # letters
        every = range(int(thinker.model.config.vocab_size))
        return next((token for token in every if processor.piece(token) == label), None)
    tail = tokenizer.decode(list(prompt[-4:]), clean_up_tokenization_spaces=False)
    alone = list(tokenizer(tail, add_special_tokens=False).input_ids)
    for form in (label, f" {label}"):
        both = list(tokenizer(tail + form, add_special_tokens=False).input_ids)
        more = both[len(alone) :]
        known = tokenizer.unk_token_id is None or tokenizer.unk_token_id not in more
        if both[: len(alone)] == alone and len(more) == 1 and known:
            return more[0]
    return None


def trained_form(thinker: Thinker) -> bool:
    """Whether the model was trained on questions of one form, with an answer of a length."""
    return "max_new_tokens" in thinker.ask_as


def decisions_of(thinker: Thinker, body: DecisionBody, *, chats: bool) -> list[Decision]:
    """The questions of a body, for a model that reads texts.

    Raises:
        ApiError: there are none, or they cannot be asked of it.
    """
    asked: Mapping[str, Any] | None = body.questions
    if asked is None:
        raise ApiError(400, "there are no questions; only a puzzle asks its own")
    if not chats and not isinstance(body.state, str):
        raise ApiError(400, f"{thinker.name} reads single texts: the state is one")
    return [Decision.of(name, question, spoken=not chats) for name, question in asked.items()]
