"""What a one-line fault is: the places of a source file where `mutants.py` may put one.

Faults are edits of the text at a node of the syntax tree, of the kinds in `WEIGHT`. Left alone are
what no test should hold down: docstrings and other strings, annotations, `__repr__`, what an error
or warning says, assertions (`zip`'s `strict` is one), decorators, code under TYPE_CHECKING, and
`device=` arguments, which only an accelerator could tell apart.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

WEIGHT = {
    "comparison": 1.0,
    "arithmetic": 1.0,
    "swapped operands": 1.0,
    "dropped operand": 0.7,
    "constant": 0.4,
    "true/false": 1.0,
    "sign or not": 1.0,
    "and/or": 1.0,
    "name": 1.2,
    "dropped keyword": 0.6,
    "swapped arguments": 0.4,
    "dropped call": 1.0,
    "slice": 0.8,
    "condition": 0.5,
    "branches": 0.7,
    "filter": 0.8,
    "statement": 0.8,
    "raise": 0.4,
    "break/continue": 1.0,
}
"""kinds, with the weight of one place in the draw: frequent kinds that fail at once weigh less"""

COMPARED = {
    ast.Lt: [(rb"<", b"<=")],
    ast.LtE: [(rb"<=", b"<")],
    ast.Gt: [(rb">", b">=")],
    ast.GtE: [(rb">=", b">")],
    ast.Eq: [(rb"==", b"!=")],
    ast.NotEq: [(rb"!=", b"==")],
    ast.Is: [(rb"\bis\b", b"is not")],
    ast.IsNot: [(rb"\bis\s+not\b", b"is")],
    ast.In: [(rb"\bin\b", b"not in")],
    ast.NotIn: [(rb"\bnot\s+in\b", b"in")],
}
COMPUTED = {
    ast.Add: [(rb"\+", b"-")],
    ast.Sub: [(rb"-", b"+")],
    ast.Mult: [(rb"\*", b"/")],
    ast.Div: [(rb"/", b"*")],
    ast.FloorDiv: [(rb"//", b"/"), (rb"//", b"%")],
    ast.Mod: [(rb"%", b"//")],
    ast.Pow: [(rb"\*\*", b"*")],
    ast.BitAnd: [(rb"&", b"|")],
    ast.BitOr: [(rb"\|", b"&")],
    ast.LShift: [(rb"<<", b">>")],
    ast.RShift: [(rb">>", b"<<")],
}
PAIRS = """ceil floor|min max|any all|argmax argmin|amax amin|sum mean|minimum maximum|zeros ones
new_zeros new_ones|zeros_like ones_like|tril triu|logical_and logical_or|cumsum cumprod
append extend|softmax log_softmax|exp expm1|rows columns|first last|start end|keys values
update setdefault|randn rand|floor_divide divide|clamp_min clamp_max
startswith endswith|discard add"""
SWAPPED_NAMES = {
    a: b
    for pair in PAIRS.replace("\n", "|").split("|")
    for a, b in (pair.split(), reversed(pair.split()))
}
REMOVABLE = set(
    "clamp abs detach clone sqrt exp log flip cumsum tril triu copy strip float".split()
)
TRANSPARENT = {"max", "min", "sorted", "reversed", "deepcopy", "abs", "ceil", "floor", "round"}
SILENT = {"warn", "warning", "info", "debug", "print"}


@dataclass(frozen=True)
class Mutant:
    """One fault: in file `path`, bytes `start` to `end` become `text`.

    span: lines of the statement (or of its head) that it lies in.
    around: lines of the function and of the classes that hold it, from the innermost.
    at_import: the place runs when the module is imported.
    """

    path: str
    scope: str
    kind: str
    line: int
    start: int
    end: int
    text: str
    before: str
    after: str
    span: tuple[int, int]
    around: tuple[tuple[int, int], ...]
    at_import: bool
    ordinal: int = 0

    @property
    def weight(self) -> float:
        """How likely the draw takes this place, beside others."""
        return WEIGHT[self.kind]

    @cached_property
    def id(self) -> str:
        """Eight hexadecimal digits that hold as long as the line and its function's name do."""
        words = (self.path, self.scope, self.kind, self.before, self.after, str(self.ordinal))
        return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]

    def apply(self, source: str) -> str:
        """The file with the fault in it."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def works(self, source: str) -> bool:
        """Whether the fault is still Python, and says something else."""
        try:
            tree = ast.parse(self.apply(source))
        except SyntaxError:
            return False
        return ast.dump(tree) != ast.dump(ast.parse(source))

    def row(self) -> dict[str, Any]:
        """What a row of results says about the mutant itself."""
        names = ("id", "path", "line", "scope", "kind", "before", "after")
        return {name: getattr(self, name) for name in names}


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mutants of a file's text; see `Mutant.works` for those that are none."""
    found = _Places(path, source)
    found.visit(ast.parse(source))
    seen = Counter[tuple[str, ...]]()
    mutants = []
    for mutant in found.mutants:
        key = (mutant.scope, mutant.kind, mutant.before, mutant.after)
        mutants.append(replace(mutant, ordinal=seen[key]))
        seen[key] += 1
    return mutants


class _Places(ast.NodeVisitor):
    """Walks a tree and notes its mutants."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.data = path, source.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.mutants: list[Mutant] = []
        self.scopes: list[Any] = []
        self.statement: ast.stmt | None = None
        self.head: tuple[int, int] | None = None  # of a function whose defaults are visited

    # -- places in the text

    def at(self, node: Any) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.at(node)
        return self.data[start:end].decode()

    def note(self, kind: str, start: int, end: int, text: str) -> None:
        line = self.data.count(b"\n", 0, start) + 1
        last = self.data.count(b"\n", 0, end) + 1
        begin, stop = self.starts[line - 1], self.starts[last]
        before = self.data[begin:stop].decode()
        after = (self.data[begin:start] + text.encode() + self.data[end:stop]).decode()
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        in_function = any(isinstance(scope, functions) for scope in self.scopes)
        statement = self.statement
        span = self.head or (line, last)
        if statement is not None and self.head is None:
            body = getattr(statement, "body", None)
            stop_line = body[0].lineno - 1 if body else cast(int, statement.end_lineno)
            span = (statement.lineno, max(statement.lineno, stop_line))
        around = [(s.lineno, s.end_lineno) for s in reversed(self.scopes)]
        self.mutants.append(
            Mutant(
                path=self.path,
                scope=".".join(s.name for s in self.scopes),
                kind=kind,
                line=line,
                start=start,
                end=end,
                text=text,
                before=" ".join(before.split()),
                after=" ".join(after.split()),
                span=span,
                around=tuple(around),
                at_import=self.head is not None or not in_function,
            )
        )

    def replace(self, kind: str, node: ast.AST, text: str) -> None:
        self.note(kind, *self.at(node), text)

    def put(self, kind: str, node: ast.AST, part: ast.AST) -> None:
        """Put a part of a node in its place, in parentheses where it could fall apart."""
        text = self.text(part)
        loose = (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp, ast.Lambda)
        self.replace(kind, node, f"({text})" if isinstance(part, loose) or "\n" in text else text)

    def between(self, kind: str, left: ast.AST, right: ast.AST, edits: list) -> None:
        start, end = self.at(left)[1], self.at(right)[0]
        for pattern, text in edits:
            if match := re.search(pattern, self.data[start:end]):
                self.note(kind, start + match.start(), start + match.end(), text.decode())

    # -- what is left alone, and where we are

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            if isinstance(node, ast.Raise):
                self.statement = node
                self.replace("raise", node, "pass")
            return
        if isinstance(node, ast.stmt):
            self.statement = node
        super().visit(node)

    def visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name in ("__repr__", "__str__", "extra_repr"):
            return
        self.scopes.append(node)
        self.head = (
            node.body[0].lineno,
            cast(int, node.end_lineno),
        )  # whoever enters may meet the default
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self.head = None
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scopes.append(node)
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    # -- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self.replace("statement", node, "pass")
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            self.replace("statement", node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace("statement", node, "pass")
        self.between("arithmetic", node.target, node.value, COMPUTED.get(type(node.op), []))
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.replace("statement", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace("break/continue", node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace("break/continue", node, "break")

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self.replace("condition", node.test, f"not ({self.text(node.test)})")
        self.visit(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    # -- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True):
            self.between("comparison", left, right, COMPARED[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        of_text = any(
            isinstance(side, texts)
            or (isinstance(side, ast.Constant) and isinstance(side.value, (str, bytes, type(None))))
            for side in (node.left, node.right)
        )
        if not of_text:
            self.between("arithmetic", node.left, node.right, COMPUTED.get(type(node.op), []))
            if isinstance(node.op, (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.MatMult)):
                (a, b), (c, d) = self.at(node.left), self.at(node.right)
                middle = self.data[b:c].decode()
                self.note(
                    "swapped operands", a, d, self.text(node.right) + middle + self.text(node.left)
                )
            if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr)):
                self.put("dropped operand", node, node.left)
                if isinstance(node.op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
                    self.put("dropped operand", node, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        edit = (rb"\band\b", b"or") if isinstance(node.op, ast.And) else (rb"\bor\b", b"and")
        for left, right in zip(node.values[:-1], node.values[1:], strict=True):
            self.between("and/or", left, right, [edit])
        if len(node.values) == 2:
            self.put("dropped operand", node, node.values[0])
            self.put("dropped operand", node, node.values[1])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.operand, ast.Constant):
            self.put("sign or not", node, node.operand)
        elif isinstance(node.op, ast.USub) and isinstance(node.operand.value, int):
            self.replace("constant", node, f"-{node.operand.value + 1}")
            self.replace("constant", node, str(1 - node.operand.value))
            return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("true/false", node, str(not value))
        elif isinstance(value, int):
            self.replace("constant", node, str(value + 1))
            self.replace("constant", node, str(value - 1) if value else "(-1)")
        elif isinstance(value, float):
            self.replace("constant", node, repr(2 * value if value else 1.0))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in ("min", "max", "any", "all"):
            self.replace("name", node, SWAPPED_NAMES[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in SWAPPED_NAMES and isinstance(node.ctx, ast.Load):
            end = self.at(node)[1]
            self.note("name", end - len(node.attr), end, SWAPPED_NAMES[node.attr])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self.visit(node.slice)

    def visit_Slice(self, node: ast.Slice) -> None:
        lower, upper, step = (
            self.text(p) if p else "" for p in (node.lower, node.upper, node.step)
        )
        tail = f":{step}" if step else ""
        if lower:
            self.replace("slice", node, f":{upper}{tail}")
        if upper:
            self.replace("slice", node, f"{lower}:{tail}")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        parts = (node.orelse, node.test, node.body)
        then, test, other = (f"({self.text(part)})" for part in parts)
        self.replace("branches", node, f"{then} if {test} else {other}")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self.replace("filter", condition, "True")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in SILENT or name.endswith(("Error", "Warning")):
            return
        self._arguments(node)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        if isinstance(node.func, ast.Attribute) and name in REMOVABLE:
            self.put("dropped call", node, node.func.value)
        if name in TRANSPARENT and node.args and not isinstance(node.args[0], ast.GeneratorExp):
            for argument in node.args[:2]:
                if not isinstance(argument, ast.Starred):
                    self.put("dropped call", node, argument)
        self.generic_visit(node)

    def _arguments(self, node: ast.Call) -> None:
        parts = [self.text(part) for part in _in_order(node)]
        start, end = self.at(node.func)[1], self.at(node)[1]
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict", "device") and len(parts) > 1:
                rest = [part for part in parts if part != self.text(keyword)]
                self.note("dropped keyword", start, end, f"({', '.join(rest)})")
        plain = (ast.Name, ast.Attribute, ast.Subscript)
        checks = ("isinstance", "issubclass", "cast", "getattr", "hasattr", "setattr")
        if ast.unparse(node.func) in checks:
            return
        if len(node.args) > 1 and all(isinstance(part, plain) for part in node.args[:2]):
            swapped = ", ".join([parts[1], parts[0], *parts[2:]])
            self.note("swapped arguments", start, end, f"({swapped})")


def _in_order(node: ast.Call) -> Iterator[ast.AST]:
    yield from sorted((*node.args, *node.keywords), key=lambda part: (part.lineno, part.col_offset))
