"""Huginn's source, beside weights: a folder that loads with `trust_remote_code=True` where `inward`
is not installed.

    modeling_huginn.py, configuration_huginn.py   model.py and config.py
    huginn_*.py, common_*.py                      what they import, and so on

The modules are this package's own, with three changes: imports of each other are relative, what
only type checkers read is left out, and so is the registration with transformers' auto classes
(`auto_map` in config.json does that). transformers copies modules that import each other so.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TypeVar

import inward
from inward.common.files import replacing

AUTO_MAP = {
    "AutoConfig": "configuration_huginn.HuginnConfig",
    "AutoModel": "modeling_huginn.HuginnModel",
    "AutoModelForCausalLM": "modeling_huginn.HuginnForCausalLM",
}
"""Auto class of transformers -> module and class"""

Node = TypeVar("Node", bound=ast.stmt)

_MODEL = "inward.methods.huginn.model"
_NAMES = {
    _MODEL: "modeling_huginn",
    "inward.methods.huginn.config": "configuration_huginn",
    "inward.common": "common_",
}


def write_source(folder: str | Path) -> list[str]:
    """Write the modules into a folder; their file names."""
    waiting, done = [_MODEL], {}
    while waiting:
        module = waiting.pop()
        if module not in done:
            done[module], needed = _freed(module)
            waiting += needed
    for module, text in done.items():
        with replacing(Path(folder) / f"{_flat(module)}.py") as partial:
            Path(partial).write_text(text, encoding="utf-8")
    return sorted(f"{_flat(module)}.py" for module in done)


def _flat(module: str) -> str:
    """What a module of ours is called beside weights."""
    if module in _NAMES:
        return _NAMES[module]
    return module.removeprefix("inward.").removeprefix("methods.").replace(".", "_")


def _file(module: str) -> Path:
    place = Path(inward.__file__).parents[1].joinpath(*module.split("."))
    file = place.with_suffix(".py")
    return file if file.is_file() else place / "__init__.py"


def _freed(module: str) -> tuple[str, list[str]]:
    """(source of a module without the package, the modules that it needs)."""
    text = _file(module).read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in _from_below(ast.parse(text), ast.If):
        if ast.unparse(node.test) == "TYPE_CHECKING":
            _replace(lines, node, [line.removeprefix("    ") for line in _else_of(lines, node)])
    tree, needed = ast.parse("\n".join(lines)), []
    top = {id(node) for node in tree.body}
    for node in _from_below(tree, ast.ImportFrom):
        if (node.module or "").split(".")[0] != "inward":
            continue
        if id(node) in top:
            written, parts = _imports(node)
            needed += parts
            _replace(lines, node, written)
        else:  # of a function that no model calls
            told = f"{ast.unparse(node)} needs the package inward"
            _replace(lines, node, [f"{' ' * node.col_offset}raise ImportError({told!r})"])
    for node in _from_below(ast.parse("\n".join(lines)), ast.Expr):
        if node.col_offset == 0 and ".register(" in ast.unparse(node):
            _replace(lines, node, [])
    return "\n".join(lines) + "\n", needed


def _from_below(tree: ast.AST, kind: type[Node]) -> list[Node]:
    """Statements of a kind, the last one first: a change leaves the lines above it alone."""
    return sorted((n for n in ast.walk(tree) if isinstance(n, kind)), key=lambda n: -n.lineno)


def _imports(node: ast.ImportFrom) -> tuple[list[str], list[str]]:
    """(the same import from beside this module, the modules it needs)."""
    assert node.module is not None
    written, needed, names = [], [], []
    for alias in node.names:
        module = f"{node.module}.{alias.name}"
        if _file(module).is_file():
            name = alias.asname or alias.name
            # transformers finds out by the first line that the module belongs to this one
            written.append(f"from .{_flat(module)} import __doc__ as _about_{name}")
            written.append(f"from . import {_flat(module)} as {name}")
            needed.append(module)
        else:
            names.append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
    if names:
        written.append(f"from .{_flat(node.module)} import {', '.join(names)}")
        needed.append(node.module)
    return written, needed


def _else_of(lines: list[str], node: ast.If) -> list[str]:
    if not node.orelse:
        return []
    return lines[node.orelse[0].lineno - 1 : node.orelse[-1].end_lineno]


def _replace(lines: list[str], node: ast.stmt, by: list[str]) -> None:
    lines[node.lineno - 1 : node.end_lineno] = by
