"""The documentation as one page of plain HTML: nothing to install, nothing fetched from anywhere."""

from html import escape
from typing import Any

import msgspec

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; text-transform: capitalize }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0 }
summary { cursor: pointer; padding: .6rem .8rem }
details > div { padding: 0 .8rem .8rem }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: var(--soft); padding: .7rem; overflow: auto; border-radius: .4rem }
b.m { display: inline-block; min-width: 4.2rem }
table { border-collapse: collapse }
td { padding: .15rem .8rem .15rem 0; vertical-align: top }
"""
CSP = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def page(document: dict[str, Any]) -> bytes:
    """The page for an OpenAPI document."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} API {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        "<p><a href=/schema/openapi.json>OpenAPI 3.1</a> · <a href=/schema/asyncapi.json>AsyncAPI 3</a></p>",
    ]
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        parts.extend(_operation(*entry) for entry in operations if tag["name"] in entry[2]["tags"])
    parts.append("<h2>Shapes</h2>")
    parts.extend(_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items()))
    return "".join(parts).encode()


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td><code>{_json(p['schema'], 0)}</code>"
        for p in operation["parameters"]
    )
    body = operation.get("requestBody")
    given = f"<h4>Body</h4><pre>{_linked(next(iter(body['content'].values()))['schema'])}</pre>" if body else ""
    answers = "".join(
        f"<tr><td><code>{status}</code><td>{_linked(answer)}" for status, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><b class=m>{method.upper()}</b> <code>{escape(path)}</code> — {escape(operation['summary'])}"
        f"</summary><div><p>{escape(operation['description'])}</p>"
        f"{f'<h4>Parameters</h4><table>{rows}</table>' if rows else ''}{given}"
        f"<h4>Answers</h4><table>{answers}</table></div></details>"
    )


def _linked(node: dict[str, Any]) -> str:
    if ref := node.get("$ref"):
        name = ref.rpartition("/")[2]
        return f"<a href='#{escape(name)}'>{escape(name)}</a>" if "/schemas/" in ref else escape(name)
    content = node.get("content")
    if content:
        media, inner = next(iter(content.items()))
        return f"{escape(node['description'])}: <code>{escape(media)}</code> {_linked(inner['schema'])}"
    return escape(node.get("description", "")) or _json(node, 0)


def _schema(name: str, schema: dict[str, Any]) -> str:
    title = escape(name)
    return f"<details id='{title}'><summary><code>{title}</code></summary><div><pre>{_json(schema, 2)}</pre></div></details>"


def _json(value: Any, indent: int) -> str:
    text = msgspec.json.encode(value)
    return escape((msgspec.json.format(text, indent=indent) if indent else text).decode())
