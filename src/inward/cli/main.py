"""The command `inward`: which verbs there are, how their options are read, how errors are told.

    inward demo | ask | chat | serve | train | plan | eval | effort | arc | convert | data | bench
           | frontier | env

The top-level help is written by hand and imports nothing, so it costs what Python costs to start.
A verb has a file of its name here (see `HOMES`): dataclasses whose fields are the options, which
tyro reads by type. What a user did wrong is told in one line: exit code 2 for the command line
(with the close match), 1 for what the library refused (`INWARD_DEBUG=1` shows where), 130 for
Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from inward.cli.options import UsageError, unknown

VERBS = {
    "demo": "shipped models solve fresh puzzles and show how",
    "ask": "any model answers what you type, and shows how it thought",
    "chat": "talk with a language model, word by word",
    "serve": "models for any client that speaks OpenAI's format",
    "train": "run a recipe; every field can be set from here",
    "plan": "memory, FLOPs and hours of a recipe on many devices",
    "eval": "accuracy and cost of any model on held-out data or a file",
    "effort": "measure what low, medium and high mean for a model",
    "arc": "score models on ARC-AGI by votes, write a submission",
    "convert": "files of the Coconut paper's own code into ours, and back",
    "data": "make or look at puzzles: sudoku, maze, arc, show",
    "bench": "start-up, training, solving and answering speed on this machine",
    "frontier": "methods that think, compared for the same training FLOPs",
    "env": "versions and hardware, for bug reports",
}

HOMES = {"env": "bench"}
"""Files of verbs that do not have one of their own"""

USAGE = "usage: inward VERB [options]      inward VERB --help      inward --version"


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
    module = import_module(f"inward.cli.{HOMES.get(verb, verb)}")
    return getattr(module, verb)(rest)


def _help() -> str:
    lines = [USAGE, "", "Models that think inside instead of out loud.", ""]
    lines += [f"  {verb:<9}{about}" for verb, about in VERBS.items()]
    return "\n".join(lines)


def _fail(error: Exception, code: int) -> int:
    print(f"inward: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    return code
