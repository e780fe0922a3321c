"""One-line faults, many of them, against the tests that run the line: does the suite bite?

    python tests/mutants.py --minutes 60            go on where the last call stopped, then report
    python tests/mutants.py --report                what is known so far
    python tests/mutants.py --only 3f2a9c1e --show  one mutant: its line before and after
    python tests/mutants.py --again survived        the survivors once more (after adding tests)

A seeded draw takes `--number` mutants, shares by stratum (`SHARES`), in an order that is random
over the strata: what was run when time ran out is a fair sample. `mutant_kinds.py` says what a
mutant is. A draw depends on the seed and on the text of the mutated function alone, so an edit
elsewhere leaves it as it was.

Which tests run a line is measured once (coverage.py, one context a test; fixtures of a module count
for every test that asks for them; lines that run at import count for the tests that enter the
function, class or file around them) and measured again for test files that have changed. A mutant
meets those tests, quickest first, up to `--budget` seconds of tests, and stops at the first that
fails. A test has timed out after 15 s of processor time more than five times what it should take.
The tests are those of `TESTS` without the slow ones. Everything happens in a copy of the tree.

Rows go to `--rows`, one JSON object a mutant; the last row of a mutant holds. Equivalent mutants
stand one by one, with the reason, in `mutants_equivalent.md`; the rate leaves them out.
Needs coverage (`pip install coverage`), which no other part of this project uses.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutant_kinds import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.md")

SHARES = {"trm": 80, "huginn": 80, "coconut": 80, "tidar": 80, "common": 60, "state": 20}
"""how many of 400 mutants each stratum gets: a method as many as another, whatever its length"""

TESTS = (
    "tests/common",
    "tests/methods",
    "tests/train",
    "tests/test_edges.py",
    "tests/test_hub.py",
    "tests/test_promises.py",
    "tests/test_thinker.py",
)

AHEAD = """torch torch.utils.data transformers accelerate safetensors.torch numpy pytest
transformers.models.llama.modeling_llama transformers.models.gpt2.modeling_gpt2 peft
transformers.generation.utils transformers.models.auto.modeling_auto""".split()
"""imported before processes are forked, each of which then spares some seconds"""


# --- the draw -------------------------------------------------------------------------------------


def stratum_of(path: str) -> str | None:
    """The stratum that a source file, relative to `src/inward`, belongs to."""
    if path == "train/state.py":
        return "state"
    first, _, rest = path.partition("/")
    name = rest.partition("/")[0] if first == "methods" else first
    return name if name in SHARES else None


def number(*words: object) -> float:
    """A number in (0, 1) that the words alone decide."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 2)


def draw(source: Path, seed: int, total: int) -> list[Mutant]:
    """`total` mutants of the files under `source` in the order in which they are run.

    Within a stratum a kind's weight says how likely its places are; no line is taken twice.
    """
    found: dict[str, list[Mutant]] = defaultdict(list)
    texts = {}
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        if stratum := stratum_of(name):
            texts[name] = path.read_text()
            found[stratum] += mutants_of(name, texts[name])
    drawn = []
    for stratum, share in SHARES.items():
        keyed = sorted(found[stratum], key=lambda m: number(seed, m.id) ** (1 / m.weight))
        lines: set[tuple[str, int]] = set()
        wanted = round(share * total / sum(SHARES.values()))
        for mutant in reversed(keyed):
            place = (mutant.path, mutant.line)
            if len(lines) < wanted and place not in lines and mutant.works(texts[mutant.path]):
                lines.add(place)
                drawn.append(mutant)
    return sorted(drawn, key=lambda m: number("order", seed, m.id))


# --- a process for each run -----------------------------------------------------------------------


def forked(work: Callable[[], None], seconds: float, log: Path) -> str:
    """Do `work` in a process of its own: "done", "limit" (processor), "hangs" or "died"."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            work()
            code = 0
        except BaseException:  # noqa: BLE001  the parent reads the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end, gone, status = time.monotonic() + seconds, 0, 0
    try:
        while not gone and time.monotonic() < end:
            gone, status = os.waitpid(child, os.WNOHANG)
            if not gone:
                time.sleep(0.05)
    finally:  # what the tests left running goes too, also when we are told to stop
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not gone:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if not gone:
        return "hangs"
    if os.WIFSIGNALED(status):
        return "limit" if os.WTERMSIG(status) == signal.SIGPROF else "died"
    return "done" if os.WEXITSTATUS(status) == 0 else "died"


def spent() -> float:
    """Seconds of processor time of this process and of the children it has waited for."""
    return sum(os.times()[:4])


class Watch:
    """A pytest plugin: the time each test takes, what fails, and who runs which line."""

    def __init__(self, coverage: Any = None, limits: dict[str, float] | None = None) -> None:
        self.coverage, self.limits = coverage, limits
        self.seconds: dict[str, float] = {}
        self.passed: set[str] = set()
        self.failed: list[str] = []
        self.asks: dict[str, list[str]] = {}  # test -> contexts of fixtures that several share

    def _measured(self, context: str):
        if self.coverage is not None:
            self.coverage.switch_context(context)
        begin = spent()
        yield
        self.seconds[context] = self.seconds.get(context, 0.0) + spent() - begin
        if self.coverage is not None:
            self.coverage.switch_context("")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        if self.limits is not None:
            signal.setitimer(signal.ITIMER_PROF, self.limits.get(item.nodeid, 60.0))
        yield from self._measured(item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            yield
            return
        name = f"{fixturedef.baseid}::{fixturedef.argname}"
        if self.coverage is not None:
            self.coverage.switch_context(name)
        begin = spent()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + spent() - begin
        if self.coverage is not None:
            self.coverage.switch_context(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])

    def pytest_collection_modifyitems(self, items):
        for item in items:
            shared = []
            for name, defs in item._fixtureinfo.name2fixturedefs.items():
                if defs[-1].scope != "function":
                    shared.append(f"{defs[-1].baseid}::{name}")
            self.asks[item.nodeid] = shared

    def pytest_runtest_logreport(self, report):
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
        if report.passed and report.when == "call":
            self.passed.add(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid or "import")


def run_pytest(watch: Watch, arguments: list[str]) -> int:
    """pytest in this process, with the copied tree as the place of everything."""
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # imported before the fork
    return int(pytest.main([*options, *arguments], plugins=[watch]))


def enter(tree: Path) -> None:
    """Make the copied tree what `inward` and its tests are imported from."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path[:] = [str(tree / "src"), str(tree), *(p for p in sys.path if str(ROOT) not in p)]


# --- which tests run a line -----------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Cover:
    """For each test file: its tests with their times, and the tests that run each line."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[str, float] = {}
        self.of_line: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))

    def files(self) -> list[str]:
        found = []
        for name in TESTS:
            path = self.tree / name
            found += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        return [path.relative_to(self.tree).as_posix() for path in found]

    def stale(self, name: str) -> bool:
        stored = self.folder / (name.replace("/", "+") + ".json")
        if not stored.exists():
            return True
        known = json.loads(stored.read_text())["files"]
        return any(
            not (self.tree / path).exists() or digest(self.tree / path) != value
            for path, value in known.items()
        )

    def measure(self, name: str, log: Path) -> str:
        """Run one test file under coverage and store what it says."""
        stored = self.folder / (name.replace("/", "+") + ".json")
        stored.unlink(missing_ok=True)

        def work() -> None:
            coverage: Any = importlib.import_module("coverage")

            enter(self.tree)
            cover = coverage.Coverage(
                data_file=None, config_file=False, source=[str(self.tree / "src" / "inward")]
            )
            watch = Watch(cover)
            cover.start()
            run_pytest(watch, [name])
            cover.stop()
            record = self._record(name, watch, cover.get_data())
            stored.with_suffix(".part").write_text(json.dumps(record))
            stored.with_suffix(".part").rename(stored)

        return forked(work, 3600.0, log)

    def _record(self, name: str, watch: Watch, data: Any) -> dict[str, Any]:
        source = self.tree / "src" / "inward"
        files = {name: digest(self.tree / name)}
        lines: dict[str, dict[str, list[int]]] = {}
        tests = sorted(watch.passed - set(watch.failed))
        askers: dict[str, list[str]] = defaultdict(list)
        for test in tests:
            for context in (test, *watch.asks.get(test, ())):
                askers[context].append(test)
        for path in data.measured_files():
            short = Path(path).relative_to(source).as_posix()
            if stratum_of(short) is None:
                continue
            by_test: dict[str, set[int]] = defaultdict(set)
            for line, contexts in data.contexts_by_lineno(path).items():
                for context in contexts:
                    for test in askers.get(context, ()):
                        by_test[test].add(line)
            if by_test:
                files[f"src/inward/{short}"] = digest(Path(path))
                lines[short] = {test: sorted(found) for test, found in by_test.items()}
        seconds = {
            test: watch.seconds.get(test, 0.0)
            + sum(watch.seconds.get(shared, 0.0) for shared in watch.asks.get(test, ()))
            for test in tests
        }
        return {"files": files, "seconds": seconds, "lines": lines, "failed": watch.failed}

    def read(self) -> None:
        for name in self.files():
            stored = self.folder / (name.replace("/", "+") + ".json")
            if not stored.exists():
                continue
            record = json.loads(stored.read_text())
            self.seconds |= record["seconds"]
            for path, by_test in record["lines"].items():
                for test, lines in by_test.items():
                    for line in lines:
                        self.of_line[path][line].add(test)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that run the mutant's line, quickest first; see the module's docstring.

        What runs at import ran, as far as was measured, in whichever test came first: so those that
        enter the function, then the class, then the file.
        """
        known, places = self.of_line[mutant.path], [mutant.span]
        if mutant.at_import:
            is_default = mutant.span[0] > mutant.line
            places = [*(places if is_default else []), *mutant.around, (0, 10**9)]
        ordered: dict[str, None] = {}
        for first, last in places:
            found = set().union(*(who for line, who in known.items() if first <= line <= last))
            ordered |= dict.fromkeys(sorted(found, key=lambda test: (self.seconds[test], test)))
        return list(ordered)


# --- running them ---------------------------------------------------------------------------------


def within(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """As many of the tests, from the first, as the budget allows; at least one."""
    total, taken = 0.0, []
    for test in tests:
        total += seconds[test]
        if taken and total > budget:
            break
        taken.append(test)
    return taken


def trial(mutant: Mutant, cover: Cover, budget: float, work_folder: Path) -> dict[str, Any]:
    """Run one mutant; the row that says what came of it."""
    covering = cover.tests(mutant)
    tests = within(covering, cover.seconds, budget)
    row = mutant.row() | {"covering": len(covering), "tests": len(tests)}
    if not tests:
        return row | {"status": "unreached"}
    target = cover.tree / "src" / "inward" / mutant.path
    original, said = target.read_text(), work_folder / "said.json"
    said.unlink(missing_ok=True)
    limits = {test: 15.0 + 5.0 * cover.seconds[test] for test in tests}

    def work() -> None:
        enter(cover.tree)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = Watch(limits=limits)
        code = run_pytest(watch, ["-x", *tests])
        said.write_text(json.dumps({"failed": watch.failed, "code": code}))

    begin = time.monotonic()
    target.write_text(mutant.apply(original))
    try:
        wall = 240.0 + 10.0 * sum(cover.seconds[test] for test in tests)
        outcome = forked(work, wall, work_folder / "log.txt")
    finally:
        target.write_text(original)
    row["seconds"] = round(time.monotonic() - begin, 1)
    if outcome == "done":
        result = json.loads(said.read_text())
        by = result["failed"][0] if result["failed"] else f"pytest's code {result['code']}"
        return row | ({"status": "killed", "by": by} if result["code"] else {"status": "survived"})
    return row | {"status": "killed" if outcome == "died" else "timeout", "by": outcome}


def copy_tree(tree: Path) -> None:
    """Bring the copy up to date with the files that git knows and the tests beside them.

    Byte code there is checked by the source's content: a mutant may have the time and size of what
    it replaces.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    wanted = {name for name in names if name and (ROOT / name).is_file()}
    for old in tree.rglob("*.py"):
        if old.relative_to(tree).as_posix() not in wanted:
            old.unlink()
    for name in sorted(wanted):
        target = tree / name
        data = (ROOT / name).read_bytes()
        if not target.exists() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    options = ["-q", "--invalidation-mode", "checked-hash", str(tree / "src")]
    subprocess.run([sys.executable, "-m", "compileall", *options], check=True)


# --- the report -----------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each mutant."""
    rows = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row["id"]] = row
    return rows


def read_equivalent() -> set[str]:
    """The mutants that the list calls equivalent."""
    text = EQUIVALENT.read_text() if EQUIVALENT.exists() else ""
    return set(re.findall(r"^- `([0-9a-f]{8})`", text, re.MULTILINE))


def report(drawn: list[Mutant], rows: dict[str, dict[str, Any]], *, first: bool = False) -> str:
    """A Markdown table by stratum, then whoever lives."""
    equivalent = read_equivalent()
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*SHARES, "all")}
    living = []
    for mutant in drawn:
        if mutant.id not in rows:
            continue
        row = rows[mutant.id]
        status = "equivalent" if mutant.id in equivalent else row["status"]
        for name in (row["stratum"], "all"):
            counts[name][status] += 1
        if status in ("survived", "unreached"):
            living.append(row)
    lines = ["| stratum | run | killed | timed out | survived | unreached | equivalent | rate |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, count in counts.items():
        dead, tried = count["killed"] + count["timeout"], sum(count.values()) - count["equivalent"]
        rate = f"{100 * dead / tried:.1f} %" if tried else "-"
        cells = (count[key] for key in ("killed", "timeout", "survived", "unreached", "equivalent"))
        lines.append(f"| {name} | {sum(count.values())} | {' | '.join(map(str, cells))} | {rate} |")
    for row in living:
        lines.append(
            f"\n{row['id']} {row['status']} ({row['tests']} of {row['covering']} tests) "
            f"{row['path']}:{row['line']} {row['scope']}, {row['kind']}\n"
            f"    - {row['before']}\n    + {row['after']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no mutant after these")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of tests a mutant")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument(
        "--rows", type=Path, default=ROOT / "benchmarks" / "tests" / "mutants.jsonl"
    )
    parser.add_argument("--again", nargs="*", default=[], help="statuses to try once more")
    parser.add_argument("--only", nargs="*", default=[], help="these mutants, run or not")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    drawn = draw(ROOT / "src" / "inward", args.seed, args.number)
    rows = read_rows(args.rows)
    equivalent = read_equivalent()
    chosen = [
        m
        for m in drawn
        if (m.id in args.only if args.only else m.id not in rows)
        or (rows.get(m.id, {}).get("status") in args.again and m.id not in equivalent)
    ]
    if args.show:
        for m in chosen:
            print(m.id, stratum_of(m.path), f"{m.path}:{m.line}", m.kind)
            print(f"    - {m.before}\n    + {m.after}")
        return
    if not args.report:
        search(chosen, args)
    print(report(drawn, read_rows(args.rows)))


def search(chosen: list[Mutant], args: argparse.Namespace) -> None:
    """Measure who runs what, then try the chosen mutants while there is time."""
    end = time.monotonic() + 60.0 * args.minutes
    work, tree = args.work.resolve(), args.work.resolve() / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    copy_tree(tree)
    for name in AHEAD:
        importlib.import_module(name)
    cover = Cover(tree, work / "cover")
    for name in cover.files():
        if cover.stale(name) and time.monotonic() < end:
            begin = time.monotonic()
            log = work / f"cover/{name.replace('/', '+')}.log"
            outcome = cover.measure(name, log)
            print(f"{name}: {outcome}, {time.monotonic() - begin:.0f} s", flush=True)
            if outcome != "done":
                raise SystemExit(f"{name} could not be measured: see {log}")
    if any(cover.stale(name) for name in cover.files()):
        raise SystemExit("no time left to measure who runs what; call again to go on")
    cover.read()
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    for mutant in chosen:
        if time.monotonic() >= end:
            break
        row = trial(mutant, cover, args.budget, work) | {"stratum": stratum_of(mutant.path)}
        with args.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["id"], row["status"], row["stratum"], row.get("seconds"), flush=True)


if __name__ == "__main__":
    main()
