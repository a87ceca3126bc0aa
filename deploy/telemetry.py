"""Logs and metrics: JSON lines with the request's id and without personal data, and numbers that Ray exports to Prometheus."""

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

LOG_LIMIT_BYTES: Final = 16 << 20
LOG_FILES_KEPT: Final = 3
FLUSH_S: Final = 1.0
BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 10_000.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets: from half a millisecond in seconds to ten thousand of anything counted."""

# --- masking -----------------------------------------------------------------------------------------------------

_PHONE = re.compile(r"(?<![\w+])(\+[1-9][0-9]{2})[0-9]{3,10}([0-9]{2})(?![0-9])")
_JWT = re.compile(r"\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*")
_BEARER = re.compile(r"(?i)\b(bearer |token[=:] ?)[\w.~+/-]{12,}=*")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_CODE = re.compile(r"(?i)\b((?:otp|code|pin)\W{1,4}(?:is\W{1,3})?)[0-9]{4,8}\b")
_DIGITS = re.compile(r"[0-9]{4,8}")
_SECRET_KEY = re.compile(r"(?i)(token|secret|password|authorization|cookie|private_key|id_card)")
_CODE_KEY = re.compile(r"(?i)(^|_)(code|otp|pin)$")


def masked(value: Any, key: str = "") -> Any:
    """The value without phone numbers, tokens, codes and passwords, whatever it is nested in.

    Of an E.164 number the first three and the last two digits stay.
    """
    if isinstance(value, Mapping):
        return {name: masked(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item, key) for item in value]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or isinstance(value, bool | float):
        return value
    if key and _SECRET_KEY.search(key):
        return "***"
    if isinstance(value, int):
        return "***" if _CODE_KEY.search(key) and _DIGITS.fullmatch(str(value)) else value
    text = value if isinstance(value, str) else repr(value)
    if _CODE_KEY.search(key) and _DIGITS.fullmatch(text):
        return "***"
    text = _PHONE.sub(r"\1***\2", text)
    text = _JWT.sub("***", text)
    text = _BEARER.sub(r"\1***", text)
    text = _CREDENTIALS.sub("***@", text)
    return _CODE.sub(r"\1***", text)


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

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        super().setFormatter(fmt)
        self._to.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        self._to.emit(record)

    def close(self) -> None:
        self._to.close()
        super().close()


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
