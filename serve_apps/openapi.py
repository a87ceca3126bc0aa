"""The OpenAPI 3.1 document, made from the route table and the structs of bodies and answers."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from domain.access import GUARDED, Rate, Rule
from domain.errors import STATUS, Code
from domain.identities import PROVIDER_NAME
from domain.uploads import TYPES
from serve_apps.endpoint import JSON, Endpoint
from serve_apps.problems import PROBLEM_JSON, Problem

VERSION: Final = "1.0.0"
_REF: Final = "#/components/schemas/{name}"
_HTML: Final = "text/html"
_DESCRIPTIONS: Final = {
    401: "No token, or one that no longer counts",
    403: "The caller is known and may not do this",
    404: "It does not exist, or the caller may not know of it",
    409: "It contradicts how things stand: see `code`, `current` and `allowed_commands`",
    413: "The body is too large",
    415: "The body is not of a type that is taken here",
    422: "The request is not valid: see `errors`",
    429: "Too many requests; `Retry-After` says when",
    500: "A bug of the platform's own, logged under `request_id`",
    503: "Temporarily unavailable; the outcome of a write is unknown until it is repeated with the same id",
}
WHO_MAY: Final = {
    Rule.PUBLIC: "Anybody.",
    Rule.USER: "Any user.",
    Rule.MEMBER: "Those whom the stream admits; to all others it does not exist.",
    Rule.OWNER: "Any user, about what is their own.",
    Rule.OPS: "Operations: accounts with the role `ops` or `admin`.",
    Rule.SIGNED: "The payment provider, by signature.",
    Rule.DEV: "Anybody, in the environment `dev`; elsewhere it does not exist.",
    Rule.NOBODY: "Nobody.",
}


def portable(schema: Any) -> Any:
    """A schema whose patterns are written as ECMA 262 wants them: `^` and `$` for Python's anchors."""
    if isinstance(schema, dict):
        return {key: _pattern(value) if key == "pattern" else portable(value) for key, value in schema.items()}
    return [portable(item) for item in schema] if isinstance(schema, list) else schema


def _pattern(value: Any) -> Any:
    return value.replace(r"\A", "^").replace(r"\Z", "$") if isinstance(value, str) else portable(value)


def openapi(rows: Sequence[Endpoint]) -> dict[str, Any]:
    """The document for these endpoints."""
    shapes = [shape for row in rows for shape in (row.body, row.query, row.answer) if shape is not None]
    shapes = list(dict.fromkeys([Problem, *shapes]))
    refs, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    schemas = portable(components)
    by_shape = dict(zip(shapes, refs, strict=True))
    paths: dict[str, Any] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, by_shape, schemas)
    for row in rows:
        if row.query is not None:
            schemas.pop(by_shape[row.query]["$ref"].rpartition("/")[2], None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "RenovEasy",
            "version": VERSION,
            "description": "The marketplace for renovations: accounts, orders, payments, conversations. "
            "Every write takes a client-made id; sent again, it has no second effect. "
            "Live events travel on the WebSocket: see /schema/asyncapi.json.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(row.tag for row in rows)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "api_key": {"type": "http", "scheme": "bearer", "description": "A worker's API key: `rek_…`"},
            },
            "responses": {f"Problem{status}": _problem(status, by_shape[Problem]) for status in sorted(_DESCRIPTIONS)},
        },
    }


def _problem(status: int, ref: Any) -> dict[str, Any]:
    response: dict[str, Any] = {"description": _DESCRIPTIONS[status], "content": {PROBLEM_JSON: {"schema": ref}}}
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return response


def _operation(row: Endpoint, by_shape: dict[Any, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": row.name,
        "tags": [row.tag],
        "summary": row.summary,
        "description": f"{row.details}\n\nWho may: {WHO_MAY[row.rule]} Rate class: `{row.rate}`.".strip(),
        "parameters": [*_path_parameters(row), *_query_parameters(row, by_shape, schemas), *_header_parameters(row)],
        "responses": _responses(row, by_shape),
        "security": [{"bearer": []}, *([{"api_key": []}] if row.api_keys else [])] if row.rule in GUARDED else [],
        "x-rule": row.rule,
        "x-rate": row.rate,
    }
    if row.raw:
        binary = {"type": "string", "format": "binary"}
        content: dict[str, Any] = {
            media_type: {"schema": binary} for media_type in sorted(frozenset().union(*TYPES.values()))
        }
        operation["requestBody"] = {"required": True, "content": content}
    if row.body is not None:
        needed = any(field.required for field in msgspec.structs.fields(row.body))
        operation["requestBody"] = {"required": needed, "content": {JSON: {"schema": by_shape[row.body]}}}
    return operation


def _path_parameters(row: Endpoint) -> Iterable[dict[str, Any]]:
    for name in row.parts:
        words = row.words.get(name)
        schema = {"type": "string", "enum": list(words)} if words else {"type": "string", "format": "uuid"}
        if name in row.names:
            schema = {"type": "string", "pattern": f"^{PROVIDER_NAME}$"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _header_parameters(row: Endpoint) -> Iterable[dict[str, Any]]:
    if row.keyed:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "The client-made id of this write: a canonical lower-case UUID.",
            "schema": {"type": "string", "format": "uuid"},
        }


def _query_parameters(row: Endpoint, by_shape: dict[Any, Any], schemas: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if row.query is None:
        return
    shape = schemas[by_shape[row.query]["$ref"].rpartition("/")[2]]
    for name, schema in shape["properties"].items():
        yield {"name": name, "in": "query", "required": name in shape.get("required", ()), "schema": _given(schema)}


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is there: it may be left out, it is never null."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if not options:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return rest | options[0] if len(options) == 1 else rest | {"anyOf": options}


def statuses(row: Endpoint) -> list[int]:
    """The statuses other than success that an endpoint may answer with."""
    found = {422, 500, 503}
    if row.rate is not Rate.NONE:
        found.add(429)
    if row.rule in GUARDED or row.rule is Rule.SIGNED or row.tag == "auth":
        found.add(STATUS[Code.UNAUTHENTICATED])
    if row.parts or row.stream or row.rule in (Rule.DEV, Rule.SIGNED):
        found.add(404)
    if row.rule in GUARDED:
        found.add(403)  # to everybody for operations, to API keys for most of the rest
    if row.conflicts:
        found.add(409)
    if row.body is not None or row.raw:
        found |= {413, 415}
        if row.stream or row.keyed or row.rule is Rule.SIGNED:
            found |= {403, 404, 409}
    return sorted(found)


def _responses(row: Endpoint, by_shape: dict[Any, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done"}
    if row.status != 204:
        schema = by_shape.get(row.answer, {})
        success["content"] = {row.media_type: {"schema": schema}}
        if row.html:
            success["content"][_HTML] = {"schema": {"type": "string"}}
    problems = {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses(row)}
    return {str(row.status): success} | problems
