"""Serve's HAProxy configuration is made safe before HAProxy reads it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

CONFIGURATION = """\
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    # Health check endpoint
backend rest
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


@pytest.fixture
def haproxy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = Path(__file__).parents[2] / "deploy"
    monkeypatch.syspath_prepend(folder)  # as it is when the file is run
    spec = importlib.util.spec_from_file_location("haproxy_script", folder / "haproxy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("tether")
    return module


def test_inner_pages_leave_the_network_and_the_public_port_gets_its_address(haproxy: ModuleType) -> None:
    safe = haproxy.made_safe(CONFIGURATION, "0.0.0.0", 8000, [9101, 8404], "/pages")
    binds = [line.strip() for line in safe.splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:9101", "bind 0.0.0.0:8000", "bind 127.0.0.1:8404"]
    assert "server one 127.0.0.1:30000 check" in safe


def test_the_client_is_named_once_inside_the_public_frontend(haproxy: ModuleType) -> None:
    safe = haproxy.made_safe(CONFIGURATION, "127.0.0.1", 8000, [9101, 8404], "/pages")
    frontend = safe.split("frontend http_frontend")[1].split("backend rest")[0]
    assert frontend.count('set-header x-forwarded-for "%[var(txn.forwarded)], %[src]"') == 1
    assert safe.count("set-var(txn.forwarded)") == 1


def test_a_configuration_that_is_safe_already_stays_as_it_is(haproxy: ModuleType) -> None:
    safe = haproxy.made_safe(CONFIGURATION, "127.0.0.1", 8000, [9101, 8404], "/pages")
    assert haproxy.made_safe(safe, "127.0.0.1", 8000, [9101, 8404], "/pages") == safe


def test_while_no_application_is_deployed_a_path_is_unavailable_and_not_unknown(haproxy: ModuleType) -> None:
    """A client takes a 404 for the last word; what is starting should be asked again."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    templates = Path(spec.origin).parent / "serve" / "_private" / "haproxy_templates.py"
    line = next(line for line in templates.read_text().splitlines() if "not found. Ping" in line)
    safe = haproxy.made_safe(line, "127.0.0.1", 8000, [], "/pages")
    assert "404" not in safe
    assert safe.strip() == "http-request deny deny_status 503"
