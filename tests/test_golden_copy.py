"""The golden values in the tree are copies of a collection outside it: they must not drift."""

from pathlib import Path

import pytest

COPY = Path(__file__).resolve().parent / "golden"
# Not INWARD_GOLDEN: that may name anybody's values, of other models under the same names.
ORIGINAL = Path(__file__).resolve().parents[2] / "shared" / "golden"

FOLDERS = sorted(path.name for path in COPY.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_tree_has_golden_values_of_both_mixers():
    assert {"trm-attention-tiny", "trm-mlp-tiny"} <= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_copy_is_the_original(name):
    if not (ORIGINAL / name).is_dir():
        pytest.skip(f"no {name} at {ORIGINAL}")
    ours, theirs = contents(COPY / name), contents(ORIGINAL / name)
    assert sorted(ours) == sorted(theirs)
    # Names only: a failing comparison of megabytes would print them.
    assert [file for file in ours if ours[file] != theirs[file]] == []
