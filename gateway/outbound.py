"""What waits to be written to one client: bounded in bytes and items, joined into few frames."""

from collections import deque


class Outbound:
    """A queue of encoded replies and pushes.

    Publications that can be read again are let in up to half of the bounds (`offer`), so that replies (`push`) always
    find room; a refused `push` means that the client is too slow to be kept.
    """

    __slots__ = ("_items", "_max_bytes", "_max_items", "size")

    def __init__(self, max_bytes: int, max_items: int) -> None:
        self._items: deque[bytes] | None = None
        self._max_bytes = max_bytes
        self._max_items = max_items
        self.size = 0
        """Bytes that wait."""

    def __len__(self) -> int:
        return len(self._items) if self._items is not None else 0

    def offer(self, item: bytes) -> bool:
        """Queue something that can be had again later; False, and nothing queued, when half of the room is taken."""
        return self._put(item, self._max_bytes // 2, self._max_items // 2)

    def push(self, item: bytes) -> bool:
        """Queue something that must not be lost; False, and nothing queued, when there is no room."""
        return self._put(item, self._max_bytes, self._max_items)

    @property
    def low(self) -> bool:
        """Whether a page of publications fits."""
        return self.size <= self._max_bytes // 8 and len(self) <= self._max_items // 8

    def take(self, target_bytes: int) -> bytes:
        """The next items, one a line, together about `target_bytes` and at least one."""
        items = self._items
        if not items:
            return b""
        first = items.popleft()
        size = len(first)
        if items and size < target_bytes:
            lines = [first]
            while items and size < target_bytes:
                line = items.popleft()
                size += len(line)
                lines.append(line)
            first = b"\n".join(lines)
        self.size -= size
        if not items:
            self._items = None
        return first

    def clear(self) -> None:
        self._items = None
        self.size = 0

    def _put(self, item: bytes, max_bytes: int, max_items: int) -> bool:
        items = self._items
        if items is None:
            items = self._items = deque()
        elif self.size + len(item) > max_bytes or len(items) >= max_items:
            return False
        items.append(item)
        self.size += len(item)
        return True
