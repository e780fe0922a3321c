"""What all commands share: reading options, one-line errors, a console."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class UsageError(Exception):
    """A command line that cannot be understood; the message is one line."""


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """One line about a word that is not among the known ones."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
    return f"there is no {what} {word!r}; {hint}"


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


def _go(kind: Any, name: str, words: list[str]) -> int:
    options = parse(kind, words, f"inward {name}")
    return 0 if options is None else options.run(words)


def _console() -> Console:
    from rich.console import Console

    return Console()
