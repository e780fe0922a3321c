"""Questions become what a model takes, and what it says becomes text again.

    TextProcessor     a tokenizer: texts, and chats through its template
    LetterProcessor   a task whose tokens are letters (pointer chasing, sums)
    PuzzleProcessor   a grid of cells: Sudoku, mazes, ARC

A processor is saved with the model, as one object of inward.json (`to_dict`, `processor_of`). Token
by token it also names pieces, for those who show traces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from inward.common.files import reading
from inward.tasks.named import parse_puzzle, task_named


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question that has been read.

    tokens: ids, or cells (L,). own: options that follow from the question itself.
    roles: (who, how many tokens) of a chat's messages. facts: what `write` needs to answer in kind.
    """

    tokens: Any
    own: Mapping[str, Any] = field(default_factory=dict)
    roles: tuple[tuple[str, int], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Processor(Protocol):
    """See the top of the file."""

    def read(self, question: Any) -> Prompt:
        """Read a question. Raises ValueError that says what is wrong with it."""
        ...

    def write(self, tokens: Sequence[int], prompt: Prompt) -> str:
        """The text of an answer's tokens, end tokens left out by the caller."""
        ...

    def unsettled(self, tokens: Sequence[int]) -> int:
        """How many of the last tokens may still change their text, see `Speaker`."""
        ...

    def piece(self, token: int) -> str:
        """One token as text, with the blanks that belong to it."""
        ...

    def options(self, own: Mapping[str, Any], prompt: Prompt, seed: int) -> dict[str, Any]:
        """Options that only the processor can tell the method: views of a puzzle, its rules."""
        ...

    def meta(self, prompt: Prompt) -> dict[str, Any]:
        """What a trace shall remember of the question."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The processor as JSON, for `processor_of`."""
        ...


# --------------------------------------------------------------------------------------------------
# Text


class TextProcessor:
    """A tokenizer of transformers.

    after: what stands behind every question, as in training (a line end).
    """

    def __init__(self, tokenizer: Any, after: str = ""):
        self.tokenizer, self.after = tokenizer, after
        self.chats = getattr(tokenizer, "chat_template", None) is not None and not after
        """Whether conversations are what the model reads: the template is there, and training did
        not put single questions in another form"""
        self._pieces: dict[int, str] = {}
        self._silent = frozenset(getattr(tokenizer, "all_special_ids", ()))

    def read(self, question: Any) -> Prompt:
        """A text as it is, or a list of message dicts through the chat template."""
        if isinstance(question, str):
            try:
                question.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the question is no Unicode text: {error.reason}") from error
            text = question.removesuffix(self.after) + self.after if self.after else question
            ids = list(self.tokenizer(text).input_ids)
            if not ids or (self.after and not question.strip()):
                raise ValueError("the question is empty; give at least one word")
            return Prompt(ids)
        if _is_chat(question):
            return self._chat(question)
        raise ValueError(
            f"a question is a text or a list of messages, not {type(question).__name__}"
        )

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> Prompt:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                "this model's tokenizer has no chat template, so it reads texts and no messages; "
                "join them to one text"
            )
        for number, message in enumerate(messages):
            if not isinstance(message.get("content"), str) or "role" not in message:
                raise ValueError(f"message {number} needs a role and a content that is a text")
        lengths = [len(self._rendered(messages[: i + 1], last=False)) for i in range(len(messages))]
        ids = self._rendered(messages, last=True)
        starts = [0, *lengths[:-1]]
        roles = [
            (str(m["role"]), end - start)
            for m, start, end in zip(messages, starts, lengths, strict=True)
        ]
        return Prompt(ids, roles=(*roles, ("assistant", len(ids) - lengths[-1])))

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, last: bool) -> list[int]:
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=last, tokenize=False
            )
            text.encode()
        except (TemplateError, TypeError, UnicodeEncodeError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def write(self, tokens: Sequence[int], prompt: Prompt | None = None) -> str:
        """Without special tokens, and without cleaning, which would take back blanks."""
        return self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def unsettled(self, tokens: Sequence[int]) -> int:
        """The run of byte tokens at the end, in vocabularies that fall back to bytes; special
        tokens, which are not written, do not end it."""
        run = 0
        for num, token in enumerate(reversed(tokens), start=1):
            if _is_byte(self.tokenizer, token):
                run = num
            elif int(token) not in self._silent:
                break
        return run

    def piece(self, token: int) -> str:
        """Decoded behind another token, because decoders drop the blank of a first word."""
        if token not in self._pieces:
            before = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            both = self.tokenizer.decode([token, token], clean_up_tokenization_spaces=False)
            self._pieces[token] = both[len(before) :] if both.startswith(before) else before
        return self._pieces[token]

    def options(self, own: Mapping[str, Any], prompt: Prompt, seed: int) -> dict[str, Any]:
        """As they are."""
        return dict(own)

    def meta(self, prompt: Prompt) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer has files of its own."""
        return {"kind": "tokenizer"} | ({"after": self.after} if self.after else {})


def _is_byte(tokenizer: Any, token: int) -> bool:
    name = tokenizer.convert_ids_to_tokens(int(token))
    return isinstance(name, str) and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", name) is not None


def _is_chat(question: Any) -> bool:
    return (
        isinstance(question, Sequence)
        and not isinstance(question, str)
        and len(question) > 0
        and all(isinstance(message, Mapping) for message in question)
    )


class LetterProcessor:
    """A task with `parse` and `word`: every token is a letter or a name of its own."""

    def __init__(self, task: Any, spec: Mapping[str, Any]):
        self.task, self.spec = task, dict(spec)

    def read(self, question: Any) -> Prompt:
        """A text in the task's form."""
        if not isinstance(question, str):
            raise ValueError(f"a question is a text here, not {type(question).__name__}")
        return Prompt(self.task.parse(question).tolist())

    def write(self, tokens: Sequence[int], prompt: Prompt | None = None) -> str:
        """Letter by letter."""
        return "".join(map(self._letter, tokens))

    def unsettled(self, tokens: Sequence[int]) -> int:
        """None: a letter is a letter."""
        return 0

    def piece(self, token: int) -> str:
        """A token as the task writes it; "?" for one that is no part of a question either."""
        try:
            return getattr(self.task, "piece", self.task.word)(token)
        except ValueError:
            return "?"

    def _letter(self, token: int) -> str:
        """A token of an answer; "?" for one that is no part of any."""
        try:
            return self.task.word(token)
        except ValueError:
            return "?"

    def options(self, own: Mapping[str, Any], prompt: Prompt, seed: int) -> dict[str, Any]:
        """As they are."""
        return dict(own)

    def meta(self, prompt: Prompt) -> dict[str, Any]:
        """The question as text: its tokens are not all letters."""
        return {"question": self.task.format(np.asarray(prompt.tokens))}

    def to_dict(self) -> dict[str, Any]:
        """Name and format of the task."""
        return self.spec


# --------------------------------------------------------------------------------------------------
# Puzzles


class PuzzleProcessor:
    """Grids of cells. A puzzle is a text, an array or a tensor; the answer comes in the same
    layout: a line for a line, rows for rows."""

    def __init__(self, task: Any):
        self.task = task

    def read(self, question: Any) -> Prompt:
        """A puzzle as text, or as an array of `Puzzles.inputs`' tokens, (cells,) or (rows, cols).

        An array of a Sudoku with zeros in it holds digits, 0 for a blank, as people write them: no
        token of a Sudoku is 0.
        """
        if isinstance(question, str):
            if not question.strip():
                raise ValueError("the puzzle is empty")
            task, cells = parse_puzzle(question, self.task)
            one_line = len(question.strip().splitlines()) == 1
            return self._prompt(task, cells, one_line)
        if hasattr(question, "detach"):
            if question.is_floating_point() or question.is_complex() or question.is_meta:
                raise ValueError(
                    f"the puzzle is a {question.dtype} tensor on {question.device}; give integers "
                    "that lie on a device"
                )
            question = question.detach().cpu().numpy()
        if not isinstance(question, np.ndarray):
            raise ValueError(
                f"a puzzle is a text, an array or a tensor, not {type(question).__name__}"
            )
        return self._array(question)

    def _array(self, cells: np.ndarray) -> Prompt:
        if not np.issubdtype(cells.dtype, np.integer) or cells.ndim not in (1, 2):
            raise ValueError(
                f"the puzzle is {cells.dtype} of shape {cells.shape}; expected integers (cells,) "
                "or (rows, columns), one puzzle at a time"
            )
        task, maze = self.task, self.task.name.startswith("maze")
        if maze and cells.ndim == 2:
            task = task_named("maze", (cells.shape[0], cells.shape[1]))
        elif maze and cells.size != task.grid[0] * task.grid[1]:
            raise ValueError(
                f"a maze of {cells.size} cells in one row: give it as (rows, columns), since this "
                f"model was trained on {task.grid[0]}x{task.grid[1]}"
            )
        if cells.size != task.grid[0] * task.grid[1]:
            raise ValueError(
                f"the puzzle has {cells.size} cells; {task.name} has "
                f"{task.grid[0]}x{task.grid[1]} = {task.grid[0] * task.grid[1]}"
            )
        flat = cells.reshape(-1)
        if task.name.startswith("sudoku"):
            flat = self._digits(flat, task)
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= task.vocab_size:
            raise ValueError(
                f"the cells run from {low} to {high}; {task.name} knows tokens 0 to "
                f"{task.vocab_size - 1}"
            )
        return self._prompt(task, flat, cells.ndim == 1)

    @staticmethod
    def _digits(flat: np.ndarray, task: Any) -> np.ndarray:
        """Tokens of a Sudoku, checked as a typed one is."""
        from inward.data.puzzles.sudoku import decode

        tokens = flat + 1 if (flat == 0).any() else flat
        if tokens.min() < 1 or tokens.max() >= task.vocab_size:
            raise ValueError(
                f"the cells run from {flat.min()} to {flat.max()}; a {task.name} array holds the "
                f"digits 1 to {task.n} and 0 for a blank, or tokens 1 (blank) to {task.n + 1}"
            )
        return task.parse(decode(tokens.astype(np.uint8)))

    def _prompt(self, task: Any, cells: np.ndarray, one_line: bool) -> Prompt:
        cells = np.asarray(cells).astype(np.int64)
        return Prompt(cells, {"grid": tuple(task.grid)}, (), {"task": task, "one_line": one_line})

    def write(self, tokens: Sequence[int], prompt: Prompt) -> str:
        """The grid in the layout of the question."""
        if not len(tokens):
            return ""
        task, cells = prompt.facts["task"], np.asarray(tokens)
        if task.name == "arc":
            from inward.data.puzzles.arc import decode, find_offset

            grid = decode(cells, find_offset(np.asarray(prompt.tokens)))
            return "\n".join("".join(map(str, row)) for row in grid.tolist())
        signs = [self.piece(int(token)) for token in cells]
        if prompt.facts["one_line"]:
            return "".join(signs)
        rows, columns = task.grid
        return "\n".join("".join(signs[i * columns : (i + 1) * columns]) for i in range(rows))

    def unsettled(self, tokens: Sequence[int]) -> int:
        """None: a cell is a cell."""
        return 0

    def piece(self, token: int) -> str:
        """One cell as one character."""
        if self.task.name.startswith("maze"):
            return ". # SGo"[token + 1] if token else "."
        if self.task.name == "arc":
            return ". 0123456789"[token] if token != 1 else "|"
        return "." if token < 2 else "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[token - 2]

    def options(self, own: Mapping[str, Any], prompt: Prompt, seed: int) -> dict[str, Any]:
        """`views=N` becomes N symmetries of the task, select="verify" its rules."""
        found, task = dict(own), prompt.facts["task"]
        views = found.pop("views", None)
        if views is not None:
            if isinstance(views, bool) or not isinstance(views, int | np.integer) or views < 1:
                raise ValueError(f"views is {views!r}, must be 1 (the puzzle as it is) or more")
            if "symmetries" in found:
                raise ValueError("views and symmetries are two ways to say one thing; give one")
            rng = np.random.default_rng(seed)
            found["symmetries"] = [task.symmetry(rng) for _ in range(int(views) - 1)]
        if found.get("select") == "verify":
            if task.name == "arc":
                raise ValueError("select is 'verify', but ARC has no rules to check an answer by")
            found["select"] = task.verify
        if found.get("abstain") is True and task.name != "arc":
            found["abstain"] = task.verify
        return found

    def meta(self, prompt: Prompt) -> dict[str, Any]:
        """Which task, of which size."""
        task = prompt.facts["task"]
        return {"task": task.name, "grid": list(task.grid)}

    def verdict(self, prompt: Prompt, tokens: Sequence[int]) -> bool | None:
        """Whether an answer obeys the rules; None where there are none."""
        task = prompt.facts["task"]
        if task.name == "arc" or not len(tokens):
            return None
        return bool(task.verify(np.asarray(prompt.tokens)[None], np.asarray(tokens)[None])[0])

    def fault(self, question: Any) -> str | None:
        """What is wrong with a question itself, whatever is answered: "no solution", "several
        solutions", or None. Asked of the rules and a bounded search, never of the model."""
        prompt = self.read(question)
        judge = getattr(prompt.facts["task"], "fault", None)
        return None if judge is None else judge(np.asarray(prompt.tokens))

    def to_dict(self) -> dict[str, Any]:
        """Name and size of the task."""
        return {"kind": "puzzle", "task": self.task.name, "grid": list(self.task.grid)}


# --------------------------------------------------------------------------------------------------
# From files


def processor_of(
    spec: Mapping[str, Any], folder: Path, *, model: Any = None, tokenizer: Any = None
) -> Processor:
    """The processor that `to_dict` described.

    Raises:
        ValueError: it is of no kind that this version knows. FileNotFoundError: no tokenizer.
    """
    with reading(folder):
        return _processor_of(spec, folder, model, tokenizer)


def _processor_of(spec: Mapping[str, Any], folder: Path, model: Any, tokenizer: Any) -> Processor:
    kind = spec.get("kind")
    if tokenizer is not None or kind == "tokenizer":
        found = tokenizer_of(folder, model, tokenizer)
        return TextProcessor(found, spec.get("after", "") if kind == "tokenizer" else "")
    if kind == "puzzle":
        return PuzzleProcessor(task_named(spec["task"], tuple(spec["grid"])))
    if kind == "hops":
        from inward.data.texts.hops import Hops
        from inward.tasks.hops import HopsTask

        return LetterProcessor(HopsTask(Hops(**_tuples(spec["rows"]))), spec)
    if kind == "addition":
        from inward.data.texts.arithmetic_text import Addition
        from inward.tasks.addition import AdditionTask

        return LetterProcessor(AdditionTask(Addition(**_tuples(spec["rows"]))), spec)
    raise ValueError(f"{folder}: there is no processor of kind {kind!r}")


def processor_for(task: Any) -> Processor | None:
    """That of a task object; None for tasks of texts with a tokenizer."""
    if hasattr(task, "grid"):
        return PuzzleProcessor(task)
    kind = {"HopsTask": "hops", "AdditionTask": "addition"}.get(type(task).__name__)
    return LetterProcessor(task, {"kind": kind, "rows": asdict(task.rows)}) if kind else None


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}


def tokenizer_of(folder: Path, model: Any = None, given: Any = None) -> Any:
    """The tokenizer given (an object or a folder), the model's own, or that in its folder.

    Raises:
        FileNotFoundError: there is none of them.
    """
    from inward.common.bases import holds_tokenizer, open_tokenizer

    if given is not None and not isinstance(given, str | Path):
        return given
    own = getattr(model, "tokenizer", None)
    if given is None and own is not None:
        return own
    place = Path(given) if given is not None else folder
    if not holds_tokenizer(place):
        raise FileNotFoundError(
            f"{place} holds no tokenizer, so the model cannot be asked in text; name one with "
            "tokenizer="
        )
    return open_tokenizer(place)
