"""What `tests/mutants.py` puts into a file, and what it leaves alone."""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from mutant_kinds import WEIGHT, Mutant, mutants_of
from mutants import SHARES, draw, stratum_of

SOURCE = '''
"""Says 1 + 1."""
from typing import Literal

LIMIT = 3


def cut(rows: "list[Literal[4]]", count: int = 2, *, keep: bool = True) -> list:
    """At least 5 < 6."""
    if count < 0 and not keep:
        raise ValueError(f"count is {count + 7}, must be 8 or more")
    rows[0] = max(rows[1:], default=None)
    kept = [row for row in rows if row]
    assert len(kept) > 9
    return list(zip(kept, rows, strict=True))[: LIMIT - count]


class Row:
    def __repr__(self) -> str:
        return str(10 + 11)
'''


def found() -> list[Mutant]:
    return [m for m in mutants_of("common/cut.py", SOURCE) if m.works(SOURCE)]


def test_each_fault_is_one_edit_of_its_line():
    edits = {(m.kind, m.after) for m in found()}
    assert edits >= {
        ("constant", "LIMIT = 4"),
        ("constant", "LIMIT = 2"),
        ("comparison", "if count <= 0 and not keep:"),
        ("and/or", "if count < 0 or not keep:"),
        ("sign or not", "if count < 0 and keep:"),
        ("condition", "if not (count < 0 and not keep):"),
        ("raise", "pass"),
        ("statement", "pass"),
        ("slice", "rows[0] = max(rows[:], default=None)"),
        ("dropped keyword", "rows[0] = max(rows[1:])"),
        ("name", "rows[0] = min(rows[1:], default=None)"),
        ("filter", "kept = [row for row in rows if True]"),
        ("swapped operands", "return list(zip(kept, rows, strict=True))[: count - LIMIT]"),
        ("arithmetic", "return list(zip(kept, rows, strict=True))[: LIMIT + count]"),
    }
    assert {m.kind for m in found()} <= set(WEIGHT)
    for mutant in found():
        text = mutant.apply(SOURCE)
        assert text[: mutant.start] == SOURCE[: mutant.start]
        assert text.endswith(SOURCE[mutant.end :])
    assert len({m.id for m in found()}) == len(found())


def test_messages_annotations_assertions_and_repr_are_left_alone():
    words = {SOURCE.splitlines()[m.line - 1].split()[0] for m in found()}
    assert words == {"LIMIT", "def", "if", "raise", "rows[0]", "kept", "return"}
    assert {m.line for m in found() if m.kind == "raise"} == {11}
    assert [m.kind for m in found() if m.line == 11] == ["raise"]
    assert not any(m.scope.endswith("__repr__") for m in found())
    defaults = [m.after for m in found() if m.line == 8]
    assert sorted(defaults) == sorted(
        f'def cut(rows: "list[Literal[4]]", count: int = {n}, *, keep: bool = {keep}) -> list:'
        for n, keep in ((1, True), (3, True), (2, False))
    )
    assert not any("strict" not in m.after and "strict" in m.before for m in found())


def test_a_default_is_met_by_whoever_enters_its_function():
    default = next(m for m in found() if m.line == 8)
    inside = next(m for m in found() if m.kind == "filter")
    top = next(m for m in found() if m.after == "LIMIT = 4")
    assert default.at_import and default.span == (9, 15) and default.scope == "cut"
    assert not inside.at_import and inside.span == (13, 13)
    assert top.at_import and top.around == ()


def test_the_draw_keeps_its_shares_and_forgets_edits_elsewhere(tmp_path):
    for name in ("common/a.py", "methods/trm/b.py", "train/state.py", "train/loop.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    assert [stratum_of(n) for n in ("methods/tidar/x.py", "train/loop.py")] == ["tidar", None]
    before = draw(tmp_path, 1, 40)
    assert {m.path for m in before} == {"common/a.py", "methods/trm/b.py", "train/state.py"}
    assert Counter(m.path for m in before)["train/state.py"] == 40 * SHARES["state"] / 400
    assert len({(m.path, m.line) for m in before}) == len(before)
    assert [m.id for m in draw(tmp_path, 2, 40)] != [m.id for m in before]
    (tmp_path / "common/a.py").write_text("x = 1\n\n" + SOURCE)
    after = draw(tmp_path, 1, 40)
    moved = [m.id for m in after if m.path != "common/a.py"]
    assert moved == [m.id for m in before if m.path != "common/a.py"]
    assert {m.id for m in after} & {m.id for m in before if m.path == "common/a.py"}
