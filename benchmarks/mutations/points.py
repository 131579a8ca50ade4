"""The mutations that can be made in a package.

A mutation replaces the text of one node of the syntax tree. Names, docstrings, annotations, decorators and messages are left
alone, as are formatted strings, whose nodes have no exact position in Python 3.11.
"""

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
}  # fmt: skip
OFF_BY_ONE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
# Calls that write for people to read, and arguments that do, or that only repeat a check.
MESSAGES = re.compile(r"(log|logger|logging|warnings)\..*|.*warn|print|UserError|.*add_argument|TypeVar|cast|.*\.error")
UNTOUCHED_ARGUMENTS = {"help", "what", "where", "remedy", "description", "match", "strict", "desc"}
IDENTIFIER = re.compile(r"\S{1,40}")  # a string without a space is a key or a name; one with a space is a text


@dataclass(frozen=True)
class Point:
    """One mutation.

    Attributes:
        file: Path within the tree.
        room: First-level folder or module of the package.
        function: Qualified name of the function or class, or an empty string for a module's own statements.
        kind: What is done to the code.
        line: Where the text begins.
        lines: First and last line of which one must run for the mutation to take effect.
        names: Identifiers that functions mention where they use the code, if it runs at import; else empty.
        span: Where the text stands, in bytes of the file.
        before: The text.
        after: What replaces it.
    """

    file: str
    room: str
    function: str
    kind: str
    line: int
    lines: tuple[int, int]
    names: tuple[str, ...]
    span: tuple[int, int]
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        """Return the file with the mutation in it."""
        return source[: self.span[0]] + self.after.encode() + source[self.span[1] :]


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    """Yield the kinds of mutation of one node, each with the node or the text that takes its place."""
    match node:
        case ast.Compare(ops=[operator]):
            yield "comparison flipped", _with(node, ops=[OPPOSITE[type(operator)]()])
            if type(operator) in OFF_BY_ONE:
                yield "comparison off by one", _with(node, ops=[OFF_BY_ONE[type(operator)]()])
        case ast.BinOp(op=operator, left=left, right=right) if type(operator) in ARITHMETIC:
            if not any(isinstance(side, ast.JoinedStr | ast.List) or _is_text(side) for side in (left, right)):
                yield "arithmetic swapped", _with(node, op=ARITHMETIC[type(operator)]())
        case ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
            yield "arithmetic swapped", _with(node, op=ARITHMETIC[type(operator)]())
        case ast.BoolOp(op=operator):
            yield "and/or swapped", _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not dropped", operand
        case ast.Constant(value=value):
            changed = _other_constant(value)
            if changed is not None:
                kind = {bool: "truth value changed", str: "string changed"}.get(type(value), "number changed")
                yield kind, ast.Constant(changed)
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield "returns None", "return None"
            if isinstance(value, ast.Compare | ast.BoolOp) or (
                isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
            ):
                yield "return negated", ast.Return(ast.UnaryOp(ast.Not(), value))
        case ast.If() | ast.IfExp():
            yield "condition forced", _with(node, test=ast.Constant(True))
            yield "condition forced", _with(node, test=ast.Constant(False))
        case ast.Call(keywords=keywords):
            for dropped in keywords:
                if dropped.arg and dropped.arg not in UNTOUCHED_ARGUMENTS:
                    yield "argument dropped", _with(node, keywords=[each for each in keywords if each is not dropped])
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Break() | ast.Continue():
            yield "statement dropped", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield "statement dropped", "pass"


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _other_constant(value: object) -> str | bool | int | float | None:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 2 if value else 1.0
        case str() if IDENTIFIER.fullmatch(value):
            return value + "x"
    return None


class _Finder(ast.NodeVisitor):
    """Collects the points of one file."""

    def __init__(self, source: str, file: str, room: str) -> None:
        self.file, self.room = file, room
        self.source = source.encode()
        self.offsets = [0]
        for line in self.source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.scopes: list[ast.AST] = []
        self.statement: ast.stmt | None = None
        self.points: list[Point] = []
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        """Note what can be done to the node, then go on to what is in it and may be changed."""
        statement = self.statement
        if isinstance(node, ast.stmt):
            self.statement = node
        if _is_untouched(node):
            pass
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._enter(node)
        else:
            for kind, after in variants(node):
                self._add(node, kind, after)
            for child in _touched_children(node):
                self.visit(child)
        self.statement = statement

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.scopes.append(node)
        if not isinstance(node, ast.ClassDef):
            for default in (*node.args.defaults, *node.args.kw_defaults):
                if isinstance(default, ast.Constant):
                    for _, after in variants(default):
                        self._add(default, "default changed", after)
        for child in node.body:
            self.visit(child)
        self.scopes.pop()

    def _add(self, node: ast.AST, kind: str, after: ast.AST | str) -> None:
        assert isinstance(node, ast.expr | ast.stmt)
        assert self.statement is not None
        part, whole = node, after
        if isinstance(node, ast.If | ast.IfExp):  # only the condition is replaced
            part, whole = node.test, after.test if isinstance(after, ast.If | ast.IfExp) else after
        start, end = self._offset(part.lineno, part.col_offset), self._offset(part.end_lineno, part.end_col_offset)
        text = whole if isinstance(whole, str) else ast.unparse(whole)
        if isinstance(whole, ast.expr) and not isinstance(whole, ast.Constant | ast.Call):
            text = f"({text})"
        lines = (self.statement.lineno, part.end_lineno or part.lineno)
        if kind == "default changed":  # takes effect in the body
            lines = (self.statement.body[0].lineno, self.statement.end_lineno or 0)  # type: ignore[attr-defined]
        before = self.source[start:end].decode()
        function = ".".join(scope.name for scope in self.scopes)  # type: ignore[attr-defined]
        self.points.append(
            Point(
                self.file, self.room, function, kind, part.lineno, lines, self._names(kind), (start, end), before, text
            )
        )

    def _names(self, kind: str) -> tuple[str, ...]:
        if kind == "default changed" or any(not isinstance(scope, ast.ClassDef) for scope in self.scopes):
            return ()
        assigned = [node.id for node in ast.walk(self.statement or ast.Pass()) if isinstance(node, ast.Name)
                    and isinstance(node.ctx, ast.Store)]  # fmt: skip
        return (*assigned, *(scope.name for scope in self.scopes))  # type: ignore[attr-defined]

    def _offset(self, line: int | None, column: int | None) -> int:
        return self.offsets[(line or 1) - 1] + (column or 0)


def _is_untouched(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Call(func=function):
            return MESSAGES.fullmatch(ast.unparse(function)) is not None
        case ast.Expr(value=value):
            return _is_text(value) or _is_untouched(value)
        case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
            return True
        case ast.If(test=test):
            return "TYPE_CHECKING" in ast.unparse(test) or "__name__" in ast.unparse(test)
        case ast.keyword(arg=name):
            return name in UNTOUCHED_ARGUMENTS
    return False


def _touched_children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children that may be changed: neither annotations nor exceptions that are raised."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "exc", "cause"):
            yield from (
                child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)
            )


def points(root: Path, package: str, rooms: Mapping[str, str]) -> list[Point]:
    """Return all mutations of a package.

    Args:
        root: Of the tree.
        package: Folder in it.
        rooms: Names of rooms by path prefixes within the package, where they differ from the first part of the path.
    """
    every = []
    for path in sorted((root / package).rglob("*.py")):
        inside = path.relative_to(root / package).with_suffix("").as_posix()
        matching = [prefix for prefix in rooms if inside.startswith(prefix)]
        room = rooms[max(matching, key=len)] if matching else inside.split("/")[0]
        every += _Finder(path.read_text(), path.relative_to(root).as_posix(), room).points
    return every
