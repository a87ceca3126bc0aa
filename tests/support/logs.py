"""Logs as a process of the platform writes them, for as long as a test takes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from deploy.telemetry import configure_logging


@contextmanager
def logging_to(folder: Path) -> Iterator[Path]:
    """Everything is logged, into the file that this gives; afterwards logging is as it was."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    configure_logging("test", folder, "debug")
    try:
        yield folder / "test.log"
    finally:
        for handler in [handler for handler in root.handlers if handler not in before]:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()
