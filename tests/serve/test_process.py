"""The command: what it refuses at once, and a process that is stopped, killed and started again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import httpx2 as httpx
import pytest

from inward.cli.main import main
from tests.serve.conftest import PUZZLE
from tests.serve.live import data_of


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["sudoku6", "--host", "0.0.0.0"], 1, "a key is needed"),
        (["no-such-model"], 1, "no-such-model is no model folder"),
        (["sudoku6", "--max-tokens", "0"], 1, "max_tokens is 0"),
        (["sudoku6", "--grace", "-1"], 1, "grace is -1"),
        (["sudoku6", "sudoku6"], 1, "two models are called"),
        (["sudoku6", "--nonsense"], 2, "nonsense"),
        ([], 2, "no model given"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(words, code, told, capsys):
    assert main(["serve", *words]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told.lower() in line.lower()


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "sudoku6", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


@contextmanager
def serving(port, *words):
    command = [sys.executable, "-m", "inward", "serve", *words, "--port", str(port)]
    env = {**os.environ, "INWARD_API_KEY": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:(\d+)", line)
        assert found, line
        url = f"http://127.0.0.1:{found[1]}"
        yield process, url
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_and_started_again_it_serves_as_before():
    ask = {"model": "sudoku6", "puzzle": PUZZLE}
    with serving(0, "sudoku6", "--threads", "1") as (process, url):
        before = httpx.post(f"{url}/v1/solve", json=ask, timeout=60).json()
        port = int(url.rpartition(":")[2])
        process.kill()
        process.wait()
    with serving(port, "sudoku6", "--threads", "1", "--grace", "1", "--max-steps", "1000000") as (
        process,
        again,
    ):
        assert again == url
        after = httpx.post(f"{url}/v1/solve", json=ask, timeout=60).json()
        assert after["answer"] == before["answer"]
        long = {"halt": "never", "max_steps": 1_000_000}
        body = ask | {"stream": True, "inward": {"options": long}}
        with httpx.stream("POST", f"{url}/v1/solve", json=body, timeout=60) as reader:
            lines = reader.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            told = data_of("\n".join(lines))
        assert told[-1] == "[DONE]" and json.loads(told[-2])["ended_by"] == "stop"
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
