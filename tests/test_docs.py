"""docs/ask.md: its examples run, and it knows every option of every method."""

import re
from pathlib import Path

import pytest

from inward.hub import doors

PAGE = (Path(__file__).parent.parent / "docs" / "ask.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, capsys):
    exec(compile(EXAMPLES[number], f"docs/ask.md example {number + 1}", "exec"), {})
    assert capsys.readouterr().out


def test_every_option_has_its_line():
    for method in doors():
        part = PAGE.split(f"### {method.name}\n")[1].split("\n### ")[0]
        for name, option in method.options.items():
            assert f"| `{name}` |" in part and f"| {option.about} |" in part, (method.name, name)
        for trace in method.traces:
            assert f"`{trace}`" in part
        assert (method.unit[1] if method.unit else method.why_no_effort) in part


def test_when_options_act_has_its_line():
    for method in doors():
        for name, option in method.options.items():
            if option.acts is not None:
                assert f"| {method.name} | `{name}` | {option.acts.told} |" in PAGE
