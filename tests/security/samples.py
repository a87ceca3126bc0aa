"""Requests made of the structs that the code itself reads: what a route or a method takes, and every string within it."""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

Path = tuple[str | int, ...]
SOON: Final = "2031-01-31T09:30:00.000Z"
_WORDS: Final = ("+8613900000009", "123456", "CNY", "publish", "A line of text", SOON, "en", "a" * 43)


def sample(shape: Any, new_id: Callable[[], str], everything: bool = False) -> Any:
    """A valid value of a struct, as JSON has it; with `everything` what may be left out is there too."""
    return _value(inspect.type_info(shape), new_id, everything)


def _value(kind: Any, new_id: Callable[[], str], everything: bool) -> Any:
    match kind:
        case inspect.StructType():
            made = {
                field.encode_name: _value(field.type, new_id, everything)
                for field in kind.fields
                if field.required or everything
            }
            return made if kind.tag is None else {kind.tag_field: kind.tag, **made}
        case inspect.ListType() | inspect.VarTupleType():
            return [_value(kind.item_type, new_id, everything)]
        case inspect.DictType() | inspect.AnyType():
            return {}
        case inspect.UnionType():
            known = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
            return _value(known[0], new_id, everything)
        case inspect.Metadata():
            return _value(kind.type, new_id, everything)
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return kind.ge if kind.ge is not None and kind.ge > 1 else 1
        case inspect.FloatType():
            return 1.0
        case inspect.DateTimeType():
            return SOON
        case inspect.StrType():
            return _text(kind, new_id())
    raise TypeError(f"nobody has said what a sample of {kind} is")


def _text(kind: inspect.StrType, some_id: str) -> str:
    for word in (some_id, *_WORDS):
        if kind.pattern is None or re.search(kind.pattern, word):
            return word
    raise ValueError(f"no sample of a string is like {kind.pattern}")


def strings(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where there are strings in a value."""
    if isinstance(value, str):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from strings(inner, (*path, key))


def replaced(value: Any, path: Path, by: Any) -> Any:
    """The value with something else in one place."""
    if not path:
        return by
    copied = msgspec.json.decode(msgspec.json.encode(value))
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = by
    return copied
