"""Several processes at one port: ids name their worker, what concerns it is handed on, numbers add
up, and one that is killed is there again."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from inward.serve.errors import ApiError
from inward.serve.server import Settings
from inward.serve.workers import Office, threads_of, worker_of
from tests.serve.conftest import PUZZLE
from tests.serve.live import data_of
from tests.serve.test_process import serving


def test_ids_name_their_worker():
    assert worker_of("chatcmpl-w3-0a1b") == 3 and worker_of("solve-w12-ff") == 12
    for other in ("chatcmpl-0a1b", "w3", "chatcmpl-w3-", "../w3-00", "chatcmpl-w-00", ""):
        assert worker_of(other) is None


def test_cores_are_shared_out():
    assert threads_of(Settings(("x",), threads=3, workers=2), 2) == 3
    cores = len(os.sched_getaffinity(0))
    assert threads_of(Settings(("x",), workers=cores), cores) == 1
    assert threads_of(Settings(("x",), workers=cores * 3), cores * 3) == 1
    with pytest.raises(ValueError, match="workers is 0"):
        Settings(("x",), workers=0)


def test_offices_hand_on_what_is_asked_and_what_is_answered(tmp_path):
    heard = []

    def control(id, action):
        heard.append((id, action))
        if action == "cancel":
            raise ApiError(400, "no", param="action", code="unsupported")
        return True

    async def main():
        offices = [Office(tmp_path, number, control) for number in range(2)]
        for office in offices:
            office.open()
        try:
            assert await offices[0].tell(1, "a-w1-00", "reasoning_end") is True
            with pytest.raises(ApiError) as caught:
                await offices[1].tell(0, "a-w0-00", "cancel")
            assert (caught.value.status, caught.value.param) == (400, "action")
            with pytest.raises(ApiError, match="worker is gone") as caught:
                await offices[0].tell(7, "a-w7-00", "cancel")
            assert caught.value.status == 404
            # as after a kill: the file is still there, and another listens in its place
            again = Office(tmp_path, 1, control)
            again.open()
            assert await offices[0].tell(1, "a-w1-01", "reasoning_end") is True
            again.close()
        finally:
            for office in offices:
                office.close()

    asyncio.run(main())
    assert heard == [
        ("a-w1-00", "reasoning_end"), ("a-w0-00", "cancel"), ("a-w1-01", "reasoning_end"),
    ]  # fmt: skip


def workers_of(process):
    """Process ids of a server's workers."""
    told = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process.pid)],
        capture_output=True, text=True, check=False,  # 1: there are none
    ).stdout  # fmt: skip
    return {int(line.split()[0]) for line in told.splitlines() if "spawn_main" in line}


def metric(url, name):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def ask(**more):
    return {"model": "sudoku6", "puzzle": PUZZLE} | more


LONG = {"options": {"halt": "never", "max_steps": 1_000_000}}


class Reader:
    """A stream that is under way."""

    def __init__(self, url):
        self.client = httpx.Client(timeout=60)
        request = self.client.build_request(
            "POST", f"{url}/v1/solve", json=ask(stream=True, inward=LONG)
        )
        self.reply = self.client.send(request, stream=True)
        self.lines = self.reply.iter_lines()
        self.id = json.loads(next(line for line in self.lines if line)[6:])["id"]

    def rest(self):
        told = data_of("\n".join(self.lines))
        self.client.close()
        return [json.loads(row) for row in told if row != "[DONE]"]


@pytest.mark.slow
def test_two_workers_share_a_port_and_one_that_is_killed_comes_back(tmp_path):
    words = ("sudoku6", "--workers", "2", "--max-steps", "1000000", "--grace", "2")
    with serving(0, *words) as (process, url):
        assert len(workers_of(process)) == 2
        readers, seen = [], set()
        while len(seen) < 2 and len(readers) < 60:
            readers.append(Reader(url))
            seen.add(worker_of(readers[-1].id))
        assert seen == {0, 1}
        assert metric(url, "inward_requests_open") == len(readers)

        # whichever worker is asked, the right one ends them
        for reader in readers[1:]:
            body = {"id": reader.id, "action": "reasoning_end"}
            told = httpx.post(f"{url}/v1/chat/completions/control", json=body)
            assert told.json() == body | {"success": True}, told.text
            assert reader.rest()[-1]["stopped"] == "budget"
        kept = readers[0]
        gone = {"id": kept.id[:-2] + "zz", "action": "cancel"}
        assert httpx.post(f"{url}/v1/chat/completions/control", json=gone).status_code == 404
        ended = metric(url, "inward_answers_total")
        assert ended == len(readers) - 1 and metric(url, "inward_requests_open") == 1

        before = workers_of(process)
        killed = next(pid for pid in sorted(before) if not _holds(pid, kept, url))
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(workers_of(process) - before) < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers_of(process) - before) == 1
        for _ in range(4):
            assert httpx.post(f"{url}/v1/solve", json=ask(), timeout=60).json()["answer"]
        assert metric(url, "inward_answers_total") == ended + 4  # the dead one's are not lost
        assert metric(url, "inward_requests_open") == 1

        process.send_signal(signal.SIGTERM)
        assert kept.rest()[-1]["ended_by"] == "stop"
        assert process.wait(timeout=40) == 0
        assert not workers_of(process)


def _holds(pid, reader, url):
    """Whether the reader's connection belongs to this process."""
    port = reader.reply.extensions["network_stream"].get_extra_info("client_addr")[1]
    inodes = set()
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        cells = row.split()
        if int(cells[2].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{cells[9]}]")
    files = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.readlink(file) in inodes for file in files if file.is_symlink())


@pytest.mark.slow
def test_a_worker_that_cannot_begin_stops_all_with_a_line(tmp_path):
    words = ["sudoku6", "no-such-model", "--workers", "2", "--port", "0"]
    import sys

    ran = subprocess.run(
        [sys.executable, "-m", "inward", "serve", *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "no-such-model is no model folder" in ran.stderr.strip().splitlines()[-1]
