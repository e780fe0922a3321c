"""Every command and every Python example of the README runs as it stands there."""

import io
import re
import shlex
from pathlib import Path

import pytest

from inward.cli.main import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^inward .*$", README, re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MAKES = re.findall(r"^make (\S+)", README, re.MULTILINE)


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 6 and EXAMPLES and MAKES


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("puzzle.txt").write_text("5.....\n...3..\n14...6\n2...1.\n....62\n.6....\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("Once there was a cat\n"))  # for chat
    try:
        code = main(shlex.split(command.split("  #")[0])[1:])
    except SystemExit as exit:  # tyro's --help
        code = exit.code
    assert code in (0, None)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_example(number, capsys):
    exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("target", MAKES)
def test_make_target_exists(target):
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)
