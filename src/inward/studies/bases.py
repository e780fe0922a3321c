"""Which bases think and draft exactly: a tiny random model of every causal type, measured.

    python -m inward.studies.bases --out docs/bases.md       all types, about fifteen minutes
    python -m inward.studies.bases gemma3_text mistral       prints what is found of these

For each type that the installed transformers maps and for both methods that take any base the
finding is *exact*, *refused* (an error when it is wrapped, whose words say what it is about this
base), *not built* (no tiny model of it comes from a configuration alone), or *wrong*: another
result than the right one (`bases_checks`), or an error on the way. There must be none of these.

Refused types that transformers' own `generate` decodes in a padded batch are listed as open: they
could be taken.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from inward.common.files import replacing
from inward.methods.coconut.model import Coconut
from inward.methods.tidar.model import TiDAR
from inward.studies.bases_checks import (
    MASK,
    SPECIALS,
    Differs,
    alone,
    coconut_checks,
    decodes_batched,
    tidar_checks,
    words,
)
from inward.studies.bases_tiny import causal_types, tiny

METHODS = ("coconut", "tidar")


@dataclass(frozen=True)
class Finding:
    """What was found of one type with one method.

    state   exact, refused, wrong, or not built
    why     of all but exact; of exact: "a row at a time" where rows do not share forwards
    open    refused, though transformers decodes it batched
    name    the model's class
    """

    kind: str
    method: str
    state: str
    why: str = ""
    open: bool = False
    name: str = ""


def measure(kind: str, methods: Sequence[str] = METHODS, **changes: Any) -> list[Finding]:
    """What is found of one type; `changes` are fields of its configuration."""
    return [_measured(kind, method, changes) for method in methods]


def _measured(kind: str, method: str, changes: Mapping[str, Any]) -> Finding:
    try:
        model = _built(kind, changes)
    except Exception as error:  # noqa: BLE001  whatever transformers raises is the finding
        return Finding(kind, method, "not built", _said(error))
    name = type(model).__name__
    try:
        wrapped = Coconut(model, SPECIALS) if method == "coconut" else TiDAR(model, MASK, 3)
    except ValueError as error:
        return Finding(kind, method, "refused", _said(error), decodes_batched(model), name)
    except Exception as error:  # noqa: BLE001  no other error may come of wrapping
        why = f"wrapping fails: {type(error).__name__}: {_said(error)}"
        return Finding(kind, method, "wrong", why, name=name)
    wrapped.eval()
    checks: dict[str, Any] = coconut_checks(model) if method == "coconut" else tidar_checks(model)
    wrong = [told for what, check in checks.items() if (told := _tried(what, check, wrapped))]
    if wrong:
        return Finding(kind, method, "wrong", "; ".join(wrong), name=name)
    shares = not isinstance(wrapped, Coconut) or wrapped.manners.together
    return Finding(kind, method, "exact", "" if shares else "a row at a time", name=name)


def _built(kind: str, changes: Mapping[str, Any]) -> Any:
    """A tiny model that has said something; in float64 if it can, because some random models make
    much of a rounding (a thought of a thought of one)."""
    for dtype in (torch.float64, torch.float32):
        model = tiny(kind, dtype=dtype, **changes)
        try:
            with torch.no_grad():
                usual = alone(model, words(20, 9))
        except Exception:
            if dtype == torch.float32:
                raise
            continue
        if not bool(torch.isfinite(usual).all()):
            raise ValueError("its own forward of random weights is not finite")
        return model
    raise AssertionError("one of the two has returned or raised")


def _tried(what: str, check: Any, wrapped: Any) -> str:
    """What is wrong with it; empty: nothing."""
    try:
        check(wrapped)
    except Exception as error:  # noqa: BLE001  an error on the way is a finding
        told = "" if isinstance(error, Differs) else f"{type(error).__name__}: "
        return f"{what}: {told}{_said(error)}"
    return ""


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --------------------------------------------------------------------------------------------------
# The page


def page(found: Sequence[Finding]) -> str:
    """The findings in Markdown."""
    kinds = sorted({finding.kind for finding in found})
    by = {(finding.kind, finding.method): finding for finding in found}
    lines = [
        "# Which bases think and draft exactly?",
        "",
        f"transformers {transformers.__version__}, {len(kinds)} causal types. Written by",
        "`python -m inward.studies.bases --out docs/bases.md`; do not edit.",
        "",
        *_INTRODUCTION,
        "",
        "| | " + " | ".join(states := ("exact", "refused", "not built", "wrong")) + " |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS:
        own = [finding.state for finding in found if finding.method == method]
        lines.append(
            f"| {_TITLES[method]} | " + " | ".join(str(own.count(s)) for s in states) + " |"
        )
    lines += ["", "## Every type", "", "| type | Coconut | TiDAR |", "|---|---|---|"]
    reasons: dict[str, int] = {}
    for kind in kinds:
        cells = [_cell(by[kind, method], reasons) for method in METHODS]
        lines.append(f"| `{kind}` | {cells[0]} | {cells[1]} |")
    lines += ["", "## Reasons", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    for method in METHODS:
        taken = [f"`{f.kind}`" for f in found if f.method == method and f.open]
        lines += ["", f"## Open: refused by {_TITLES[method]}, decoded batched by transformers", ""]
        lines.append((", ".join(taken) or "none") + ".")
    return "\n".join(lines) + "\n"


_TITLES = {"coconut": "Coconut", "tidar": "TiDAR"}
_INTRODUCTION = (
    "*Exact*: a tiny random model of the type gave what transformers' own forward of each row",
    "alone gives, unpadded, without a cache, at default attention: in batches of unequal rows,",
    "padded left and right, cached, with text three times as long as its windows and chunks",
    "(6 positions), with gradients; Coconut's three executors and its generation, TiDAR's schemes",
    "and its training. *A row at a time*: exact too, but rows of unequal length share no forwards.",
    "*Refused*: an error when wrapped, with the reason. *Not built*: its configuration alone gives",
    "no tiny model; nothing is known. Your own model is asked the same when you wrap it.",
)


def _cell(finding: Finding, reasons: dict[str, int]) -> str:
    if finding.state == "exact":
        return f"exact, {finding.why}" if finding.why else "exact"
    why = finding.why.replace(finding.name, "It") if finding.name else finding.why
    number = reasons.setdefault(why.replace("|", "\\|"), len(reasons) + 1)
    return f"{finding.state} ({number})"


# --------------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> list[Finding]:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="model types; default: all")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--rows", type=Path, help="keep findings here, and go on from them")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.kinds) - set(causal_types()))
    if unknown:
        parser.error(f"transformers maps no causal types {unknown}")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    found: list[Finding] = []
    if args.rows and args.rows.exists():
        rows = args.rows.read_text(encoding="utf-8").splitlines()
        found = [Finding(**json.loads(row)) for row in rows]
    known = {(finding.kind, finding.method) for finding in found}
    for kind in args.kinds or causal_types():
        missing = [method for method in METHODS if (kind, method) not in known]
        for finding in measure(kind, missing):
            found.append(finding)
            print(kind, finding.method, finding.state, finding.why[:200], flush=True)
            if args.rows:
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(finding)) + "\n")
    if args.out:
        with replacing(args.out) as hidden:
            hidden.write_text(page(found), encoding="utf-8")
    wrong = sum(finding.state == "wrong" for finding in found)
    print(f"{len(found)} findings, {wrong} wrong")
    return found


if __name__ == "__main__":
    main()
