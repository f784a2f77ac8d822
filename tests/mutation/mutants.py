"""Small changes of a module's source, one at a time, made from its syntax tree."""

from __future__ import annotations

import ast
import copy
import difflib
import random
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
TWINS = {"min": "max", "any": "all", "minimum": "maximum", "floor": "ceil", "argmin": "argmax"}
TWINS |= {"sum": "mean", "rows": "columns", "successors": "predecessors", "eigvalsh": "eigvals"}
TWINS |= {value: key for key, value in TWINS.items() if key not in {"eigvalsh"}}
# Decorators without which nothing runs, or which only tell readers something.
OBVIOUS = {"property", "staticmethod", "classmethod", "dataclass", "contextmanager"}
OBVIOUS |= {"overload", "override", "final", "abstractmethod", "runtime_checkable"}
# Their arguments are words for people: only the whole statement is dropped.
WORDS = {"TypeVar", "debug", "info", "warning", "error", "exception", "print", "log", "warn"}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One changed source, and where the change is.

    scope: a function's qualified name; `A.` for the body of class A, "" for the module's.
    """

    line: int
    scope: str
    source: str
    what: str

    def diff(self, original: str) -> str:
        """The changed lines, as - and +."""
        lines = difflib.unified_diff(original.splitlines(), self.source.splitlines(), n=0)
        changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        return "\n".join(changed)


def mutants(source: str) -> list[Mutant]:
    """All mutants of a source; a few may not parse, or mean the same."""
    found = {}
    for node, new, scope, what in _Walker().walk(ast.parse(source)):
        changed = _replace(source, node, new)
        where = scope.removesuffix(".<locals>.")
        found[changed] = Mutant(line=node.lineno, scope=where, source=changed, what=what)
    return list(found.values())


def sample(source: str, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants, spread over the lines: no line twice before each had its turn."""
    rng = random.Random(seed)  # noqa: S311
    unchanged = ast.dump(ast.parse(source))
    by_line: dict[int, list[Mutant]] = {}
    for mutant in mutants(source):
        by_line.setdefault(mutant.line, []).append(mutant)
    for on_line in by_line.values():
        rng.shuffle(on_line)
    chosen: list[Mutant] = []
    while by_line and len(chosen) < count:
        lines = list(by_line)
        rng.shuffle(lines)
        for line in lines:
            while len(chosen) < count and by_line[line]:
                mutant = by_line[line].pop()
                if _differs(mutant.source, unchanged):
                    chosen.append(mutant)
                    break
        by_line = {line: left for line, left in by_line.items() if left}
    return sorted(chosen, key=lambda mutant: mutant.line)


def _differs(source: str, unchanged: str) -> bool:
    try:
        return ast.dump(ast.parse(source)) != unchanged
    except SyntaxError:
        return False


def _replace(source: str, node: ast.AST, new: str) -> str:
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = b"".join(lines)
    begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    return (whole[:begin] + new.encode() + whole[end:]).decode()


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    simple = (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript, ast.stmt, ast.List)
    return text if isinstance(node, simple) else f"({text})"


Change = tuple[ast.AST, str, str, str]


class _Walker:
    """Yields `(node, new text, scope, what)` for each mutant."""

    def walk(self, tree: ast.Module) -> Iterator[Change]:
        yield from self._body(tree.body, "")

    def _body(self, body: list[ast.stmt], scope: str) -> Iterator[Change]:
        bound: set[str] = set()
        for statement in body:
            yield from self._statement(statement, scope, bound)

    def _statement(self, node: ast.stmt, scope: str, bound: set[str]) -> Iterator[Change]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield from self._definition(node, scope)
                return
            case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Pass():
                return
            case ast.Expr(value=ast.Constant()):  # a docstring
                return
            case ast.Raise() | ast.Delete() | ast.AugAssign() | ast.Expr(value=ast.Call()):
                yield node, "pass", scope, "drop the statement"
            case ast.Expr(value=ast.Await() | ast.YieldFrom()):
                yield node, "pass", scope, "drop the statement"
            case ast.Continue():
                yield node, "break", scope, "continue to break"
                yield node, "pass", scope, "drop the statement"
            case ast.Break():
                yield node, "continue", scope, "break to continue"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, "pass", scope, "drop the statement"
            case ast.Assign(targets=[ast.Name(id=name)]) if name in bound and scope:
                yield node, "pass", scope, "drop the statement"  # the older value stays
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("__"):
                return
            case ast.If(test=test) if _is_name(test, "TYPE_CHECKING"):
                return
        if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            changed = copy.deepcopy(node)
            changed.op = ARITHMETIC[type(node.op)]()
            yield node, _text(changed), scope, "operator"
        if isinstance(node, ast.If | ast.While):
            yield node.test, _text(ast.UnaryOp(ast.Not(), node.test)), scope, "negate the condition"
            if isinstance(node, ast.If) and not node.orelse:
                yield node.test, "False", scope, "drop the branch"
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            bound |= {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}
        if isinstance(node, ast.Raise):
            return  # the rest is words
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self._expression(node.value, scope)
            return
        for field, value in ast.iter_fields(node):
            if field == "targets" or (field == "target" and not isinstance(value, ast.Subscript)):
                continue
            yield from self._parts(value, scope, bound)

    def _parts(self, value: object, scope: str, bound: set[str]) -> Iterator[Change]:
        if isinstance(value, ast.expr):
            yield from self._expression(value, scope)
        for item in value if isinstance(value, list) else []:
            if isinstance(item, ast.stmt):
                yield from self._statement(item, scope, bound)
            elif isinstance(item, ast.expr):
                yield from self._expression(item, scope)
            elif isinstance(item, ast.withitem):
                yield from self._expression(item.context_expr, scope)
            elif isinstance(item, ast.ExceptHandler):
                yield from self._handler(item, scope, bound)
            elif isinstance(item, ast.match_case):
                if item.guard is not None:
                    yield from self._expression(item.guard, scope)
                yield from self._parts(item.body, scope, bound)

    def _handler(self, node: ast.ExceptHandler, scope: str, bound: set[str]) -> Iterator[Change]:
        if isinstance(node.type, ast.Tuple) and len(node.type.elts) > 1:
            for i in range(len(node.type.elts)):
                fewer = ast.Tuple([*node.type.elts[:i], *node.type.elts[i + 1 :]], ast.Load())
                yield node.type, ast.unparse(fewer), scope, "drop a kind of error"
        yield from self._parts(node.body, scope, bound)

    def _definition(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, scope: str
    ) -> Iterator[Change]:
        inside = f"{scope}{node.name}"
        for decorator in node.decorator_list:
            name = ast.unparse(decorator).split("(")[0]
            if name not in OBVIOUS:
                # A decorator stands after its "@": replaced by one that does nothing.
                yield decorator, "(lambda same: same)", inside, "drop the decorator"
            if isinstance(decorator, ast.Call):
                yield from self._expression(decorator, inside)
        if isinstance(node, ast.ClassDef):
            yield from self._body(node.body, f"{inside}.")
            return
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            yield from self._expression(default, inside)
        bound = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        for statement in node.body:
            yield from self._statement(statement, f"{inside}.<locals>.", bound)

    def _expression(self, node: ast.expr, scope: str) -> Iterator[Change]:
        if isinstance(node, ast.JoinedStr):
            return  # words, and without positions of its parts in Python 3.11
        yield from ((node, new, scope, what) for new, what in self._changes(node))
        if isinstance(node, ast.Call) and _called(node) in WORDS:
            return
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "format_spec"):
                continue
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, ast.expr):
                    yield from self._expression(item, scope)
                elif isinstance(item, ast.keyword):
                    yield from self._expression(item.value, scope)
                elif isinstance(item, ast.comprehension):
                    yield from self._comprehension(item, scope)
                elif isinstance(item, ast.arguments):
                    for default in [*item.defaults, *filter(None, item.kw_defaults)]:
                        yield from self._expression(default, scope)

    def _comprehension(self, node: ast.comprehension, scope: str) -> Iterator[Change]:
        yield from self._expression(node.iter, scope)
        for condition in node.ifs:
            yield condition, "True", scope, "drop the condition"
            yield condition, _text(ast.UnaryOp(ast.Not(), condition)), scope, "negate the condition"
            yield from self._expression(condition, scope)

    def _changes(self, node: ast.expr) -> Iterator[tuple[str, str]]:
        match node:
            case ast.Compare(ops=ops):
                for i, op in enumerate(ops):
                    for other in COMPARISONS[type(op)]:
                        changed = copy.deepcopy(node)
                        changed.ops[i] = other()
                        yield _text(changed), "comparison"
            case ast.BinOp(left=left, op=op, right=right):
                if type(op) in ARITHMETIC and not _is_words(left):
                    changed_op = ast.BinOp(left, ARITHMETIC[type(op)](), right)
                    yield _text(changed_op), "operator"
                if type(op) in (ast.Sub, ast.Div, ast.MatMult, ast.Pow):
                    yield _text(ast.BinOp(right, op, left)), "swap the operands"
            case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
                yield _text(operand), "drop the sign"
            case ast.BoolOp(op=op, values=values):
                other_op = ast.Or() if isinstance(op, ast.And) else ast.And()
                yield _text(ast.BoolOp(other_op, values)), "and, or"
                for i in range(len(values)):
                    fewer = [*values[:i], *values[i + 1 :]]
                    rest = fewer[0] if len(fewer) == 1 else ast.BoolOp(op, fewer)
                    yield _text(rest), "drop an operand"
            case ast.IfExp(test=test, body=body, orelse=orelse):
                yield _text(ast.IfExp(test, orelse, body)), "swap the branches"
            case ast.Constant(value=value):
                yield from self._constant(value)
            case ast.Call():
                yield from self._call(node)
            case ast.Name(id=name) if name in TWINS:
                yield TWINS[name], "twin"
            case ast.Attribute(value=value, attr=name) if name in TWINS:
                yield f"{_text(value)}.{TWINS[name]}", "twin"

    def _constant(self, value: object) -> Iterator[tuple[str, str]]:
        if isinstance(value, bool):
            yield str(not value), "constant"
        elif isinstance(value, int):
            for other in {value + 1, value - 1, 2 * value, 0} - {value}:
                yield f"({other})" if other < 0 else str(other), "constant"
        elif isinstance(value, float):
            for new in {value + 1.0, 2.0 * value, 0.0, 0.5 * value} - {value}:
                yield repr(new), "constant"
        elif isinstance(value, str | bytes) and value and not _is_words(ast.Constant(value)):
            other_word = value + "x" if isinstance(value, str) else value + b"x"
            yield repr(other_word), "key"

    def _call(self, node: ast.Call) -> Iterator[tuple[str, str]]:
        name = _called(node)
        if name in WORDS:
            return
        for i in range(len(node.args) - 1):
            if any(isinstance(a, ast.Starred) for a in node.args[i : i + 2]):
                continue
            changed = copy.deepcopy(node)
            changed.args[i], changed.args[i + 1] = changed.args[i + 1], changed.args[i]
            yield _text(changed), "swap the arguments"
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                changed = copy.deepcopy(node)
                del changed.keywords[i]
                yield _text(changed), f"drop {keyword.arg}="
        if name in ("sorted", "reversed", "abs", "set", "copy") and len(node.args) == 1:
            yield _text(node.args[0]), f"drop {name}()"


def _is_name(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (
        isinstance(node, ast.Attribute) and node.attr == name
    )


def _is_words(node: ast.expr) -> bool:
    """Whether this is text for people rather than a key."""
    if isinstance(node, ast.JoinedStr):
        return True
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
