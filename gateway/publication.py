"""A publication as sessions get it: encoded once per encoding, however many of them there are."""

from collections.abc import Callable

import msgspec

_DATA = b'{"data":'
_ERASES = b'"message.deleted"'
"""The text of a message cannot hold this: its quotes are escaped."""


class Address:
    """A channel's name, as pushes carry it."""

    __slots__ = ("name", "prefix")

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = b'{"push":{"channel":%s,"pub":%s' % (msgspec.json.encode(name), _DATA)
        """How every JSON push on the channel begins, up to the publication's data."""


class Publication:
    """An item on a channel. `offset` 0 stands for none: it is ephemeral.

    `json` is the whole push in JSON. Line ends in the data would end the protocol's line, and are taken out.
    """

    __slots__ = ("_end", "_protobuf", "address", "json", "offset")

    def __init__(self, address: Address, data: bytes, offset: int = 0) -> None:
        if b"\n" in data or b"\r" in data:
            data = msgspec.json.format(data, indent=-1)
        self.address = address
        self.offset = offset
        self.json = (
            b'%s%s,"offset":%d}}}' % (address.prefix, data, offset) if offset else b"%s%s}}}" % (address.prefix, data)
        )
        self._end = len(address.prefix) + len(data)
        self._protobuf = b""

    @property
    def data(self) -> bytes:
        """What was published, as JSON."""
        return self.json[len(self.address.prefix) : self._end]

    @property
    def item(self) -> bytes:
        """The publication in JSON without the push around it, as it stands in a list."""
        return self.json[len(self.address.prefix) - len(_DATA) : -2]

    def protobuf(self, encode: Callable[["Publication"], bytes]) -> bytes:
        """The whole push in Protobuf, made the first time that somebody wants it."""
        if not self._protobuf:
            self._protobuf = encode(self)
        return self._protobuf


class Event(Publication):
    """A committed event, and what it means for who may listen.

    `left` is the user who is no member from here on, `recheck` says that somebody may have lost the right to listen,
    `erases` that content from before it is gone.
    """

    __slots__ = ("erases", "left", "recheck")

    def __init__(self, address: Address, data: bytes, offset: int, left: str = "", recheck: bool = False) -> None:
        super().__init__(address, data, offset)
        self.left = left
        self.recheck = recheck
        self.erases = _ERASES in data
