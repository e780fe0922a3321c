"""Examples of docs/ask.md, see.md and meter.md run; ask.md knows every option of every method."""

import re
from pathlib import Path

import pytest

from inward.hub import doors

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "ask.md").read_text(encoding="utf-8")
EXAMPLES = [
    (name, example)
    for name in ("ask", "see", "meter")
    for example in re.findall(
        r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL
    )
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, example = EXAMPLES[number]
    exec(compile(example, f"docs/{name}.md example {number + 1}", "exec"), {})
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
