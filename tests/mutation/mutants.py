"""Every small mistake that could have been made in a Python file, one at a time; pure.

A mutant is one edit of the source text. What is never touched: imports, annotations, decorators, asserts (they state
invariants that no test can break), docstrings, and texts for people (strings with a space and a small letter, and
everything said in a `raise`).
"""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

TUNING: Final = 8
"""From here on a number is a limit or a period: it becomes nothing, or as good as endless; a smaller one moves by 1."""
ENDLESS: Final = 1_000
_SHORT: Final = 16
_LONG: Final = 110
_WIDER: Final = (ast.expr, ast.keyword, ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr)

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_TWINS: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_STRICT: Final = frozenset({"len", "iter", "next", "isinstance"})
"""With an argument less these only fail, wherever they are reached."""
_UNWRAPPED: Final = frozenset({"list", "sorted", "dict.fromkeys"})


class Edit(NamedTuple):
    """What one node becomes."""

    kind: str
    node: ast.AST
    text: str


class Mutant(NamedTuple):
    """One mistake. (`inside`, `was`, `now`, `nth`) names it among those of its file, wherever the lines move."""

    kind: str
    inside: str
    was: str
    now: str
    nth: int
    line: int
    first_line: int
    last_line: int
    source: bytes
    """The whole file with the mistake in it."""

    @property
    def name(self) -> str:
        return f"{self.inside}: {self.was}  →  {self.now}" + (f"  #{self.nth}" if self.nth > 1 else "")


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a file in the order of their places; those that mean the same are left out."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    done: set[bytes] = set()
    for edit in edits(tree):
        node: Any = edit.node
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        mutated = source[:start] + edit.text.encode() + source[end:]
        if mutated in done or not _differs(edit):
            continue
        done.add(mutated)
        around = _around(node, parents)
        was, now = _texts(source, starts, around, node, edit.text)
        inside = _inside(node, parents)
        seen[inside, was, now] += 1
        statement = _statement(node, parents)
        first, last = _span(statement, node)
        nth = seen[inside, was, now]
        found.append(Mutant(edit.kind, inside, was, now, nth, node.lineno, first, last, mutated))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.name))


def _differs(edit: Edit) -> bool:
    """Whether the edit means anything else than what was there; and a look that it is Python at all."""
    new = ast.parse(f"({edit.text})", mode="eval").body if isinstance(edit.node, ast.expr) else ast.parse(edit.text)
    return ast.dump(new) != ast.dump(edit.node)


# --- where a mutant is ---------------------------------------------------------------------------------------------


def _around(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """The expression that says enough to recognise the place."""
    while isinstance(node, ast.expr | ast.keyword | ast.comprehension) and len(ast.unparse(node)) < _SHORT:
        parent = parents[node]
        if not isinstance(parent, _WIDER) or not hasattr(parent, "lineno") or len(ast.unparse(parent)) > _LONG:
            break
        node = parent
    return node


def _texts(source: bytes, starts: list[int], around: Any, node: Any, text: str) -> tuple[str, str]:
    begin, end = starts[around.lineno - 1] + around.col_offset, starts[around.end_lineno - 1] + around.end_col_offset
    inner = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    was = source[begin:end]
    now = source[begin : inner[0]] + text.encode() + source[inner[1] : end]
    return " ".join(was.decode().split()), " ".join(now.decode().split())


def _inside(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str:
    names: list[str] = []
    up: ast.AST | None = node
    while up is not None:
        if isinstance(up, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(up.name)
        up = parents.get(up)
    return ".".join(reversed(names)) or "the module"


def _statement(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    while not isinstance(node, ast.stmt | ast.ExceptHandler):
        node = parents[node]
    return node


def _span(statement: Any, node: Any) -> tuple[int, int]:
    """The lines whose running means that the mutant's place was reached."""
    if hasattr(statement, "body"):
        return statement.lineno, max(statement.lineno, node.end_lineno if isinstance(node, ast.expr) else 0)
    return statement.lineno, statement.end_lineno


# --- which mistakes ------------------------------------------------------------------------------------------------


def edits(tree: ast.AST) -> Iterator[Edit]:
    """Every edit of every node, outermost first."""
    for statement in getattr(tree, "body", []):
        yield from _of(statement, in_raise=False)


def _of(node: ast.AST, in_raise: bool) -> Iterator[Edit]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr) or _is_fixed(node):
        return
    yield from _statements(node)
    yield from _expressions(node, in_raise)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "keywords" if _is_class(node) else ""):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _of(child, in_raise or isinstance(node, ast.Raise))


def _is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def _is_fixed(node: ast.AST) -> bool:
    """Docstrings and slots: they say something, they do nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__slots__" for t in node.targets)


def _statements(node: ast.AST) -> Iterator[Edit]:
    match node:
        case ast.Expr() | ast.Assign() | ast.AugAssign() | ast.Delete() | ast.Raise():
            yield Edit("statement left out", node, "pass")
        case ast.AnnAssign(target=ast.Attribute(), value=value) if value is not None:
            yield Edit("statement left out", node, "pass")
        case ast.Return(value=None):
            yield Edit("statement left out", node, "pass")
        case ast.Return(value=ast.Constant(value=None)):
            yield Edit("statement left out", node, "pass")
        case ast.Return(value=value) if value is not None:
            yield Edit("returns None", value, "None")
        case ast.Continue():
            yield Edit("statement left out", node, "pass")
            yield Edit("continue is break", node, "break")
        case ast.Break():
            yield Edit("statement left out", node, "pass")
            yield Edit("break is continue", node, "continue")
    match node:
        case ast.If(test=test):
            yield Edit("always", test, "True")
            yield Edit("never", test, "False")
        case ast.While(test=test):
            yield Edit("never", test, "False")
        case ast.For(iter=things) | ast.AsyncFor(iter=things):
            yield Edit("no rounds", things, "()")
        case ast.Raise(exc=ast.Call(func=ast.Name() as raised)):
            yield Edit("other exception", raised, "RuntimeError")
        case ast.ExceptHandler(type=caught) if caught is not None:
            yield Edit("catches nothing", caught, "()")
            yield Edit("catches everything", caught, "BaseException")
            if isinstance(caught, ast.Tuple):
                for left_out in caught.elts:
                    rest = [each for each in caught.elts if each is not left_out]
                    yield Edit("catches less", caught, ast.unparse(ast.Tuple(rest, ast.Load())))
        case ast.With(items=items) | ast.AsyncWith(items=items):
            for item in items:
                if item.optional_vars is None:
                    yield Edit("without", item.context_expr, "__import__('contextlib').nullcontext()")
    if isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
        changed = copy.deepcopy(node)
        changed.op = _OPERATORS[type(node.op)]()
        yield Edit("operator", node, ast.unparse(changed))


def _expressions(node: ast.AST, in_raise: bool) -> Iterator[Edit]:
    match node:
        case ast.Compare():
            for n, operator in enumerate(node.ops):
                for other in _COMPARISONS.get(type(operator), ()):
                    yield Edit("comparison", node, _with(node, lambda new, n=n, other=other: _put(new.ops, n, other())))
        case ast.BoolOp():
            junction = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
            yield Edit("and/or", node, _with(node, lambda new: setattr(new, "op", junction)))
            for n in range(len(node.values)):
                yield Edit("operand left out", node, _with(node, lambda new, n=n: new.values.pop(n)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield Edit("not left out", node, f"({ast.unparse(operand)})")
        case ast.BinOp() if type(node.op) in _OPERATORS and not _is_text(node):
            opposite = _OPERATORS[type(node.op)]()
            yield Edit("operator", node, _with(node, lambda new: setattr(new, "op", opposite)))
        case ast.IfExp(test=test):
            yield Edit("always", test, "True")
            yield Edit("never", test, "False")
        case ast.comprehension(ifs=tests):
            for test in tests:
                yield Edit("always", test, "True")
                yield Edit("never", test, "False")
        case ast.Lambda(body=body):
            yield Edit("returns None", body, "None")
        case ast.Call():
            yield from _calls(node)
        case ast.Constant():
            yield from _constants(node, in_raise)


def _calls(node: ast.Call) -> Iterator[Edit]:
    called = ast.unparse(node.func)
    if called in _TWINS:
        yield Edit("twin", node.func, _TWINS[called])
    if called in _UNWRAPPED and node.args and not isinstance(node.args[0], ast.Starred):
        yield Edit("unwrapped", node, f"({ast.unparse(node.args[0])})")
    if node.args and called not in _STRICT:
        yield Edit("argument left out", node, _with(node, lambda new: new.args.pop(), bare=True))
    for n in range(len(node.keywords)):
        yield Edit("argument left out", node, _with(node, lambda new, n=n: new.keywords.pop(n), bare=True))


def _constants(node: ast.Constant, in_raise: bool) -> Iterator[Edit]:
    value = node.value
    if value is True or value is False:
        yield Edit("constant", node, str(not value))
    elif isinstance(value, int | float):
        others = (0, value * ENDLESS) if abs(value) >= TUNING else (value + 1, value - 1)
        for other in others:
            yield Edit("constant", node, f"({other})" if other < 0 else str(other))
    elif isinstance(value, str | bytes) and not in_raise:
        text = value if isinstance(value, str) else value.decode("latin-1")
        if " " in text and text != text.upper():
            return
        yield Edit("constant", node, repr(value + ("X" if isinstance(value, str) else b"X")))  # type: ignore[operator]


def _with(node: Any, change: Any, *, bare: bool = False) -> str:
    changed = copy.deepcopy(node)
    change(changed)
    if isinstance(changed, ast.BoolOp) and len(changed.values) == 1:
        changed = changed.values[0]
    text = ast.unparse(changed)
    return text if bare else f"({text})"


def _put(items: list[Any], n: int, item: Any) -> None:
    items[n] = item


def _is_text(node: ast.BinOp) -> bool:
    """Adding texts; or a type union."""
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )
