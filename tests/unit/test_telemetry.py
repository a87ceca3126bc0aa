"""Logs carry the request's id and no personal data; metrics are handed over in one go."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from deploy.telemetry import configure_logging, masked
from tests.support.logs import logging_to


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    with logging_to(tmp_path) as path:
        yield path


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sent to +8613812345678", "sent to +861***78"),
        ("from +14155550123 to +442079460958.", "from +141***23 to +442***58."),
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "***"),
        ("a key rek_3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA was refused", "a key rek_*** was refused"),
        ("otpauth://totp/RenovEasy?secret=JBSWY3DPEHPK3PXP&issuer=R", "otpauth://totp/RenovEasy?secret=***&issuer=R"),
        ("your code is 123456", "your code is ***"),
        ("otp=9876", "otp=***"),
        ("mysql+asyncmy://root:hunter2@db/x", "mysql+asyncmy://***@db/x"),
        (
            "order 019aa1b2-0000-7000-8000-000000000000 moved 12345 m",
            "order 019aa1b2-0000-7000-8000-000000000000 moved 12345 m",
        ),
        ("token authentication is enabled", "token authentication is enabled"),
    ],
)
def test_a_text_keeps_its_meaning_and_loses_its_secrets(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_secrets_are_found_by_their_key_however_deep_they_are() -> None:
    event = {
        "user": {"refresh_token": "abc", "phones": ["+8613812345678"]},
        "code": "invalid_transition",
        "otp": 123456,
        "n": 123456,
    }
    assert masked(event) == {
        "user": {"refresh_token": "***", "phones": ["+861***78"]},
        "code": "invalid_transition",
        "otp": "***",
        "n": 123456,
    }


def test_both_kinds_of_loggers_write_json_with_the_request_id(log: Path) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("one").info("sms sent", to="+8613812345678", attempt=1)
        logging.getLogger("two").warning("no route to %s", "+8613812345678")
    logging.getLogger("two").info("afterwards")
    one, two, three = lines(log)
    assert (one["event"], one["to"], one["attempt"], one["request_id"]) == ("sms sent", "+861***78", 1, "r-1")
    assert (two["event"], two["level"], two["request_id"]) == ("no route to +861***78", "warning", "r-1")
    assert three["process"] == "test"
    assert "request_id" not in three


def test_a_traceback_is_masked_too(log: Path) -> None:
    try:
        raise ValueError("bad phone +8613812345678")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert "+8613812345678" not in log.read_text()
    assert "bad phone +861***78" in str(lines(log)[0]["exception"])


def test_configuring_again_does_not_double_the_lines(log: Path) -> None:
    configure_logging("test", log.parent, "info")
    logging.getLogger("x").info("once")
    assert [line["event"] for line in lines(log)] == ["once"]
