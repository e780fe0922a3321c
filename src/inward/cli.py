"""The command `inward`: which verbs there are, how their options are read, how errors are told.

    inward demo | train | eval | arc | solve | generate | data | bench | env

The top-level help is written by hand and imports nothing, so it costs what Python costs to start.
The verbs are in `commands.py`: dataclasses whose fields are the options, which tyro reads by type.
What a user did wrong is told in one line: exit code 2 for the command line (with the close match),
1 for what the library refused (`INWARD_DEBUG=1` shows where), 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

VERBS = {
    "demo": "shipped models solve fresh puzzles and show how",
    "train": "run a recipe; every field can be set from here",
    "eval": "accuracy and cost of a model on held-out puzzles or a file",
    "arc": "score models on ARC-AGI by votes, write a submission",
    "solve": "solve what you type, show the draft being rewritten",
    "generate": "a language model continues your text, and shows how it thought",
    "data": "make or look at puzzles: sudoku, maze, arc, show",
    "bench": "start-up, training and solving speed on this machine",
    "env": "versions and hardware, for bug reports",
}

USAGE = "usage: inward VERB [options]      inward VERB --help      inward --version"


class UsageError(Exception):
    """A command line that cannot be understood; the message is one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    arguments: the words after `inward` (default: those of this process).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UsageError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `inward ... | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains at exit
        return 141
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("INWARD_DEBUG"):
            raise
        return _fail(error, 1)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from inward import __version__

        print(f"inward {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        raise UsageError(unknown("verb", verb, VERBS))
    return getattr(import_module("inward.commands"), verb)(rest)


def _help() -> str:
    lines = [USAGE, "", "Models that think inside instead of out loud.", ""]
    lines += [f"  {verb:<9}{about}" for verb, about in VERBS.items()]
    return "\n".join(lines)


def _fail(error: Exception, code: int) -> int:
    print(f"inward: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return code


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """One line about a word that is not among the known ones."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
    return f"there is no {what} {word!r}; {hint}"


# --------------------------------------------------------------------------------------------------
# Options by tyro


def parse(kind: Any, words: list[str], prog: str) -> Any:
    """The dataclass `kind` filled from the command line; None after its help was shown.

    Raises UsageError with what tyro says, in one line.
    """
    import contextlib
    import io

    import tyro

    config = (
        tyro.conf.AvoidSubcommands,
        tyro.conf.PositionalRequiredArgs,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.FlagCreatePairsOff,
    )
    if {"-h", "--help"} & set(words):
        words = ["--help"]  # else words before it would be left out of the help
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=words, config=config)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """The message of tyro's box (drawn in UTF-8 or ASCII), with the option that it proposes."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip().strip("│").strip()
        if text and not text.strip("─-"):
            parts.append([])
        elif text and text[0] not in "╭╰":
            parts[-1].append(text)
    if "╭" not in box:
        del parts[0]  # the title, which in UTF-8 stands in the frame
    message = " ".join(parts[0]) if parts else box
    for part in parts[1:]:
        if part and part[0].startswith(("Perhaps you meant", "Arguments similar to")):
            close = next((line.split()[0] for line in part[1:] if line.startswith("--")), None)
            message += f"; did you mean {close}?" if close else ""
    return message


def quiet() -> None:
    """Switch off the progress bars with which transformers reports each load and save."""
    from transformers.utils import logging

    logging.disable_progress_bar()
