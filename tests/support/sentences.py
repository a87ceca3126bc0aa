"""Every sentence in which the code refuses something, read out of the code itself: what the catalogue must know."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYERS = ("domain", "actors", "gateway", "storage", "serve_apps")
REFUSING = {"Refusal", "Refused", "FieldError", "invalid", "wrong", "conflict"}
HELD = {"detail", "message"}
"""Variables that hold such a sentence until it is said."""
SAYING = {"_tries_left"}
"""Functions that make one."""


def template(node: ast.AST) -> str | None:
    """A sentence with `{}` for what is put in; None for what is no sentence, such as a code or a field's name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    else:
        return None
    return text if " " in text else None


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """What the value may be: both branches of a condition, a part of a slice."""
    if isinstance(node, ast.IfExp):
        yield from _parts(node.body)
        yield from _parts(node.orelse)
    elif isinstance(node, ast.Subscript):
        yield from _parts(node.value)
    else:
        yield node


def sentences() -> dict[str, str]:
    """Each sentence, and where it stands."""
    found: dict[str, str] = {}
    for path in sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")):
        if path.name.startswith("client"):  # the gateway's client speaks to programmers
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            values: list[ast.AST] = []
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in REFUSING:
                    values = [*node.args, *(word.value for word in node.keywords if word.arg in HELD)]
            elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") in HELD for target in node.targets):
                values = [node.value]
            elif isinstance(node, ast.FunctionDef) and node.name in SAYING:
                values = [item.value for item in ast.walk(node) if isinstance(item, ast.Return) and item.value]
            for value in (part for item in values for part in _parts(item)):
                text = template(value)
                if text is not None:
                    found.setdefault(text, f"{path.relative_to(ROOT)}:{value.lineno}")  # type: ignore[attr-defined]
    return found
