"""Every command of docs/your-model.md runs, in its order, on a tiny model and for a few steps."""

import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from inward.cli.main import main

PAGE = (Path(__file__).parent.parent / "docs" / "your-model.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STORIES = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
TRAIN = (
    "--train.batch-rows 4 --train.device cpu --train.progress off --train.warmup 1 --num-valid 2"
).split()
SMALL = {
    "train interleaved": [*TRAIN, "--num-train", "6", "--num-test", "2", "--spoken-epochs", "1",
                          "--stages", "1", "--num-evaluated", "2"],
    "train tidar-adapter": [*TRAIN, "--train.steps", "3", "--max-new-tokens", "12"],
    "eval": ["--num", "2", "--max-new-tokens", "6"],
    "ask": ["--max-new-tokens", "4"],
    "chat": ["--max-new-tokens", "4"],
    "bench": ["--repeats", "1", "--num-prompts", "1", "--max-new-tokens", "4"],
}  # fmt: skip
"""What is said beside the options of the page; the last word counts"""


def small(command: str) -> list[str]:
    """The words of a command, on the tiny model and for a moment."""
    words = shlex.split(command.replace("smollm2-135m-instruct", "stories260k"))[1:]
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in SMALL)
    return [*words, *SMALL[name]]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder with a model and the two files."""
    models = os.environ.get("INWARD_MODELS", Path(__file__).parents[2] / "shared" / "models")
    if not (Path(models) / "stories260k").is_dir():
        pytest.skip("no model stories260k; set INWARD_MODELS to the folder around it")
    shutil.copytree(Path(models) / "stories260k", tmp_path / "models/stories260k")
    rows = [
        {
            "question": f"Tom has {a} eggs and finds {a + 1}. He sells 2. How many are left?",
            "answer": f"{a}+{a + 1}=<<{a}+{a + 1}={2 * a + 1}>>{2 * a + 1}\n"
            f"{2 * a + 1}-2=<<{2 * a + 1}-2={2 * a - 1}>>{2 * a - 1}\n#### {2 * a - 1}",
        }
        for a in range(2, 14)
    ]
    (tmp_path / "gsm8k").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "gsm8k/train.jsonl").write_text(text)
    assert STORIES is not None
    (tmp_path / "stories.txt").write_text(STORIES[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INWARD_MODELS", str(tmp_path / "models"))
    return tmp_path


def test_the_page_goes_the_whole_way():
    done = [shlex.split(command)[1] for command in COMMANDS if command.startswith("inward ")]
    assert {"train", "eval", "ask", "chat", "bench"} == set(done) and done.count("train") == 2
    assert any(command.startswith("mv ") for command in COMMANDS) and EXAMPLES


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.filterwarnings("ignore:.*Could not find a config file:UserWarning")  # peft's
def test_every_command_runs(desk, monkeypatch, capsys):
    pytest.importorskip("peft")
    for command in COMMANDS:
        if command.startswith("mv "):
            source, target = shlex.split(command)[1:]
            shutil.move(desk / source, desk / target)
            continue
        assert command.startswith("inward "), command
        monkeypatch.setattr("sys.stdin", io.StringIO("How many?\n/effort\nAnd now?\n"))
        assert main(small(command)) == 0, (command, capsys.readouterr().err)
        assert capsys.readouterr().out, command
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"docs/your-model.md example {number + 1}", "exec"), {})
        assert capsys.readouterr().out
