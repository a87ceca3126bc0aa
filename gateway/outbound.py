"""What waits to be written to one client: bounded in bytes and items, joined into few frames."""

from collections import deque
from typing import Final

_SWEEP: Final = 16
_STATES: Final = 4
"""States may take up this part of the bounds (a quarter) beyond what publications may."""


class _Slot:
    """A state in the queue; without an item where a later one of the same key has taken over."""

    __slots__ = ("item", "key")

    item: bytes | None

    def __init__(self, key: object, item: bytes) -> None:
        self.key = key
        self.item = item


class Outbound:
    """A queue of encoded replies and pushes, in three classes.

    Publications that can be read again (`offer`) are let in up to half of the bounds; what is beyond is read again later.
    State of the moment (`put`) is kept once per key, the latest, behind whatever waited before it, and up to three quarters.
    Everything else (`push`) finds the rest: a refusal means that the client is too slow to be kept.
    """

    __slots__ = ("_items", "_left", "_max_bytes", "_max_items", "_slots", "size")

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self._items: deque[bytes | _Slot] | None = None
        self._slots: dict[object, _Slot] | None = None
        self._left = 0
        self._max_bytes = max_bytes
        self._max_items = max_items
        self.size = 0
        """Bytes that wait."""

    def __len__(self) -> int:
        return len(self._items) - self._left if self._items is not None else 0

    def offer(self, item: bytes) -> bool:
        """Queue something that can be had again later; False, and nothing queued, when half of the room is taken."""
        return self._add(item, len(item), self._max_bytes // 2, self._max_items // 2)

    def put(self, key: object, item: bytes, *, kept: bool = False) -> bool:
        """Queue a state, and drop the one of the same key that still waits; False if there was no room.

        What must be `kept` while the client is finds as much room as `push`.
        """
        slots = self._slots
        if slots is not None and (former := slots.pop(key, None)) is not None:
            self._leave(former)
        slot = _Slot(key, item)
        most_bytes, most_items = self._max_bytes, self._max_items
        if not kept:
            most_bytes, most_items = most_bytes - most_bytes // _STATES, most_items - most_items // _STATES
        if not self._add(slot, len(item), most_bytes, most_items):
            return False
        if slots is None:
            slots = self._slots = {}
        slots[key] = slot
        return True

    def push(self, item: bytes) -> bool:
        """Queue something that must not be lost; False, and nothing queued, when there is no room."""
        return self._add(item, len(item), self._max_bytes, self._max_items)

    @property
    def low(self) -> bool:
        """Whether a page of publications fits."""
        return self.size <= self._max_bytes // 8 and len(self) <= self._max_items // 8

    def take(self, target_bytes: int, separator: bytes) -> bytes:
        """The next items with the separator between them, together about `target_bytes` and at least one."""
        items, size = self._items, 0
        parts: list[bytes] = []
        while items and (not parts or size < target_bytes):
            part = self._next(items)
            if part is not None:
                size += len(part)
                parts.append(part)
        self.size -= size
        if not items:
            self._items = self._slots = None
            self._left = 0
        return parts[0] if len(parts) == 1 else separator.join(parts)

    def clear(self) -> None:
        self._items = self._slots = None
        self._left = self.size = 0

    def _next(self, items: deque[bytes | _Slot]) -> bytes | None:
        item = items.popleft()
        if not isinstance(item, _Slot):
            return item
        if item.item is None:
            self._left -= 1
            return None
        assert self._slots is not None
        del self._slots[item.key]
        return item.item

    def _leave(self, slot: _Slot) -> None:
        """The slot says nothing any more; such ones are swept out before they are the greater part."""
        assert slot.item is not None
        assert self._items is not None
        self.size -= len(slot.item)
        slot.item = None
        self._left += 1
        if self._left > max(_SWEEP, len(self._items) // 2):
            self._items = deque(item for item in self._items if not isinstance(item, _Slot) or item.item is not None)
            self._left = 0

    def _add(self, item: bytes | _Slot, size: int, max_bytes: int, max_items: int) -> bool:
        items = self._items
        if items is None:
            items = self._items = deque()
        elif len(self) and (self.size + size > max_bytes or len(self) >= max_items):
            return False
        items.append(item)
        self.size += size
        return True
