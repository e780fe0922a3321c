"""The shape of the house: who may import whom. Every import counts, lazy ones and those for types
alone too."""

import ast
from pathlib import Path

import pytest

import inward

PACKAGE = Path(inward.__file__).parent

LAYERS = (
    ("common",),
    ("data",),
    ("methods",),
    ("hub",),
    ("tasks",),
    ("train",),
    ("recipes",),
    ("thinker",),
    ("evals",),
    ("studies",),
    ("bench", "viz", "serve"),
    ("demo",),
    ("cli",),
)
"""From the ground up: a file imports of its own layer and of those before it."""

HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by name; packages by their own name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("inward", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str, source: str, *, types: bool = True) -> set[str]:
    """The modules of the package that this source imports, wherever in it the import stands;
    without `types` not those that it needs for annotations alone."""
    found = set()
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types and not types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else str(node.module))
    return {target for target in found if target.split(".")[0] == "inward"} - {name}


GRAPH = {name: imports(name, path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room(module: str) -> str:
    """inward.methods.trm.model -> methods"""
    return module.split(".")[1] if "." in module else ""


def method(module: str) -> str | None:
    """inward.methods.trm.model -> trm"""
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["methods"] and len(parts) > 2 else None


def test_every_file_has_a_room():
    assert {room(name) for name in GRAPH} - {"", "__main__"} <= set(HEIGHT)


@pytest.mark.parametrize("name", sorted(set(GRAPH) - {"inward", "inward.__main__"}))
def test_nothing_imports_upwards(name):
    own = HEIGHT[room(name)]
    above = {t for t in GRAPH[name] if room(t) and HEIGHT[room(t)] > own}
    assert not above, f"{name} imports of higher layers: {sorted(above)}"


def test_rooms_of_one_layer_do_not_know_each_other():
    beside = [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if room(name) in HEIGHT and room(target) in HEIGHT
        if room(name) != room(target) and HEIGHT[room(name)] == HEIGHT[room(target)]
    ]
    assert not beside


def test_no_method_imports_another():
    crossing = [
        (name, target)
        for name, targets in GRAPH.items()
        for target in targets
        if method(name) and method(target) and method(name) != method(target)
    ]
    assert not crossing


def test_no_circles():
    """Names in annotations do no harm: who runs needs no type."""
    graph = {
        name: imports(name, path.read_text(encoding="utf-8"), types=False)
        for name, path in MODULES.items()
    }
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        path.append(name)
        for target in sorted(graph.get(name, ())):
            visit(target)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


def users(module: str) -> set[str]:
    """The methods that use a module, through others of common too; and the data room, which lies
    between."""
    found, waiting, seen = set(), [module], {module}
    while waiting:
        current = waiting.pop()
        for name, targets in GRAPH.items():
            if current in targets and name not in seen:
                seen.add(name)
                if method(name):
                    found.add(method(name))
                elif room(name) == "data":
                    found.add("data")
                elif room(name) == "common":
                    waiting.append(name)
    return found


@pytest.mark.parametrize("name", sorted(n for n in GRAPH if n.startswith("inward.common.")))
def test_the_ground_holds_what_two_methods_use(name):
    if MODULES[name].name != "__init__.py":
        assert len(users(name)) >= 2, f"{name} serves {sorted(users(name))} alone"


def test_no_class_name_twice():
    seen: dict[str, str] = {}
    twice = []
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                if node.name in seen:
                    twice.append((node.name, seen[node.name], name))
                seen[node.name] = name
    assert not twice


def test_the_reader_of_imports_sees_lazy_ones():
    source = "def f():\n    from inward.hub import load\n    import inward.viz.plots\n"
    assert imports("x", source) == {"inward.hub", "inward.viz.plots"}


@pytest.mark.parametrize(
    "path", sorted(MODULES.values()), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_stay_readable(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 600
