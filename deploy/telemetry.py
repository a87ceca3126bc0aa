"""Logs and metrics: JSON lines with the request's id and without personal data, and numbers that Ray exports to Prometheus."""

import contextlib
import copy
import logging
import logging.handlers
import re
import sys
import threading
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from domain.redaction import redacted, shortened_phone

LOG_LIMIT_BYTES: Final = 16 << 20
LOG_FILES_KEPT: Final = 3
FLUSH_S: Final = 1.0
BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 10_000.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets: from half a millisecond in seconds to ten thousand of anything counted."""

# --- masking -----------------------------------------------------------------------------------------------------

_DIGITS = re.compile(r"[0-9]{4,8}")
_SECRET_KEY = re.compile(
    r"(?i)(token|secret|passw|passphrase|authorization|cookie|private_?key|api_?key|id_card|pepper)"
)
_CODE_KEY = re.compile(r"(?i)(^|_)(code|otp|pin)$")
_PHONE_KEY = re.compile(r"(?i)(^|_)(phone|mobile|tel|telephone|msisdn)s?(_?(number|no))?s?$")
_DEEPEST: Final = 12
_LONGEST: Final = 64 << 10


def masked(value: Any, key: str = "", depth: int = 0) -> Any:
    """The value without phone numbers, addresses, tokens, codes and passwords, whatever it is nested in.

    Of a phone number the first three and the last two digits stay. What is deeper than 12 or longer than 64 KiB is cut.
    """
    if key and _SECRET_KEY.search(key) and value is not None and not isinstance(value, bool):
        return "***"
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _masked_items(value, key, depth + 1) if depth < _DEEPEST else "…"
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("utf-8", "replace")
    if value is None or isinstance(value, bool | float):
        return value
    text = value if isinstance(value, str) else _shown(value)
    if _CODE_KEY.search(key) and _DIGITS.fullmatch(text):
        return "***"
    if _PHONE_KEY.search(key) and sum(letter.isdigit() for letter in text) >= 5:
        return shortened_phone(text)
    if isinstance(value, int):
        return value
    return redacted(text if len(text) <= _LONGEST else _cut(text))


def _masked_items(value: Any, key: str, depth: int) -> Any:
    if not isinstance(value, Mapping):
        return [masked(item, key, depth) for item in value]
    named = ((name if isinstance(name, str) else _shown(name), item) for name, item in value.items())
    return {redacted(name): masked(item, name, depth) for name, item in named}


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # a line is worth more than the one object in it
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _cut(text: str) -> str:
    """Its beginning, up to the end of a word: half a secret might not look like one."""
    return text[:_LONGEST].rpartition(" ")[0] + " …"


def _mask_event(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {key: masked(value, key) if key not in _OWN_KEYS else value for key, value in event.items()}


_OWN_KEYS: Final = frozenset({"timestamp", "level", "logger", "process", "_record", "_from_structlog"})

# --- logs --------------------------------------------------------------------------------------------------------

_SHARED: Final[list[structlog.types.Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(process: str, folder: Path | None, level: str = "info") -> None:
    """Send every log of this process, structlog's and the standard library's, as JSON lines to `<folder>/<process>.log`.

    The file is followed by at most `LOG_FILES_KEPT` older ones of `LOG_LIMIT_BYTES`; None for the folder: standard error.
    What was bound with `structlog.contextvars` (the request's id) is in every line. Calling it again replaces the former.
    """

    def name_process(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["process"] = process
        return event

    final: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        name_process,
        _mask_event,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_SHARED, processors=final)
    root = logging.getLogger()
    for former in [handler for handler in root.handlers if isinstance(handler, _Ours)]:
        root.removeHandler(former)
        former.close()
    handler = _Ours(process, folder)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "sqlalchemy.engine", "alembic", "ray", "websockets"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Ours(logging.Handler):
    """Writes to a rotating file, or to standard error."""

    def __init__(self, process: str, folder: Path | None) -> None:
        super().__init__()
        self._to: logging.Handler
        if folder is None:
            self._to = logging.StreamHandler(sys.stderr)
        else:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._to = logging.handlers.RotatingFileHandler(
                folder / f"{process}.log", maxBytes=LOG_LIMIT_BYTES, backupCount=LOG_FILES_KEPT, delay=True
            )
        self._to.handleError = _not_written  # type: ignore[method-assign]

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        super().setFormatter(fmt)
        self._to.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        if record.args:
            try:
                record.getMessage()
            except Exception:
                record = copy.copy(record)
                record.msg, record.args = f"cannot be formatted: {record.msg!r} with {_shown(record.args)}", ()
        self._to.emit(record)

    def close(self) -> None:
        self._to.close()
        super().close()


def _not_written(record: logging.LogRecord) -> None:
    """In place of `logging`'s own words, which hold the message and its arguments as they are."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"a line of {record.name} was not written: {type(sys.exc_info()[1]).__name__}\n")


# --- metrics -----------------------------------------------------------------------------------------------------


class Gathered:
    """What happened since the last flush: sums and bucket counts."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.buckets: dict[str, list[int]] = {}
        self.sums: dict[str, float] = {}


class RayMetrics:
    """`domain.ports.Metrics` on `ray.util.metrics`: gathers in plain dictionaries, hands over once a second.

    Every name is exported as `ray_renoveasy_<name>` with the tag `process`, and counters get `_total` at the end. An
    observation becomes three counters, `<name>_bucket` with the tag `le` (cumulative, as Prometheus counts), `<name>_sum`
    and `<name>_count`: Ray's own histogram would take a call for each value. Safe to use from any thread. `close` hands
    over what is left.
    """

    def __init__(self, process: str) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._gathered = Gathered()
        self._gauges: dict[str, float] = {}
        self._instruments: dict[str, Any] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def count(self, name: str, value: float = 1.0) -> None:
        with self._lock:
            counts = self._gathered.counts
            counts[name] = counts.get(name, 0.0) + value

    def gauge(self, name: str, value: float) -> None:
        with self._lock:
            self._gauges[name] = value

    def observe(self, name: str, value: float) -> None:
        with self._lock:
            gathered = self._gathered
            buckets = gathered.buckets.get(name)
            if buckets is None:
                buckets = gathered.buckets[name] = [0] * (len(BUCKETS) + 1)
            buckets[bisect_left(BUCKETS, value)] += 1
            gathered.sums[name] = gathered.sums.get(name, 0.0) + value

    def flush(self) -> None:
        """Hand over what was gathered."""
        with self._lock:
            gathered, self._gathered = self._gathered, Gathered()
            gauges = dict(self._gauges)
        for name, value in gathered.counts.items():
            if value:
                self._counter(name).inc(value, tags={"process": self._process})
        for name, value in gauges.items():  # Ray forgets a gauge that is not set again and again
            self._gauge(name).set(value, tags={"process": self._process})
        for name, buckets in gathered.buckets.items():
            self._hand_over_histogram(name, buckets, gathered.sums[name])

    def close(self) -> None:
        """Flush and stop."""
        self._closed.set()
        self._thread.join(FLUSH_S * 5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_S):
            self._flush_safely()
        self._flush_safely()

    def _flush_safely(self) -> None:
        try:
            self.flush()
        except Exception:
            logging.getLogger(__name__).exception("metrics could not be handed over")

    def _hand_over_histogram(self, name: str, buckets: list[int], total: float) -> None:
        below = 0
        bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
        for bound, number in zip(bounds, buckets, strict=True):
            below += number
            if below:
                self._counter(f"{name}_bucket", "le").inc(below, tags={"process": self._process, "le": bound})
        if total > 0:
            self._counter(f"{name}_sum").inc(total, tags={"process": self._process})
        self._counter(f"{name}_count").inc(below, tags={"process": self._process})

    def _counter(self, name: str, *tags: str) -> Any:
        from ray.util.metrics import Counter

        return self._instrument(name, Counter, tags)

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        return self._instrument(name, Gauge, ())

    def _instrument(self, name: str, kind: Any, tags: tuple[str, ...]) -> Any:
        if name not in self._instruments:
            self._instruments[name] = kind(f"renoveasy_{name}", description=name, tag_keys=("process", *tags))
        return self._instruments[name]
