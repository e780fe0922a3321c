"""docs/huginn.md: its examples run in their order, its command is what it says."""

import json
import re
import shlex
from pathlib import Path

import torch

from inward.cli.main import main

PAGE = (Path(__file__).parents[3] / "docs" / "huginn.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


def test_the_examples_run():
    torch.set_num_threads(1)
    names: dict[str, object] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        exec(example, names)


def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert COMMANDS
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0
    config = json.loads((tmp_path / "hops-standalone" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
