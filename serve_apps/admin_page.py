"""The pages for operators: plain HTML made here, and one form whose script does nothing but ask for them."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from serve_apps.inspection import StreamInspection

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
td { font-family: ui-monospace, monospace; font-size: 13px }
.wrong { color: #c00; font-weight: bold }
form { display: grid; gap: .6rem; max-width: 40rem }
iframe { width: 100%; height: 75vh; border: 1px solid var(--line) }
"""
_SCRIPT: Final = """
const form = document.querySelector('form'), shown = document.querySelector('iframe');
form.addEventListener('submit', async event => {
  event.preventDefault();
  const [kind, id] = form.stream.value.trim().split(':');
  const path = '/v1/admin/streams/' + encodeURIComponent(kind) + '/' + encodeURIComponent(id || '');
  const headers = { Accept: 'text/html', Authorization: 'Bearer ' + form.token.value.trim() };
  try {
    const answer = await fetch(path, { headers, cache: 'no-store' });
    const text = await answer.text();
    shown.srcdoc = answer.ok ? text : '<pre>' + text.replace(/[&<]/g, c => '&#' + c.charCodeAt(0) + ';') + '</pre>';
  } catch (error) {
    shown.srcdoc = '<p>No answer.</p>';
  }
});
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Vary": "Accept",
}
FORM_HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; "
    "connect-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
}


def form_page() -> bytes:
    """The form. The token stays in the page's memory: it is sent in a header and kept nowhere."""
    return _page(
        "RenovEasy streams",
        "<h1>A stream</h1><form>"
        "<label>Access token <input name=token type=password autocomplete=off required size=60></label>"
        "<label>Stream <input name=stream required size=60 placeholder='order:0190…'></label>"
        "<button>Show</button></form><iframe title='The stream' sandbox></iframe>"
        f"<script>{_SCRIPT}</script>",
    )


def stream_page(shown: StreamInspection) -> bytes:
    """A stream from both sides, with what differs on top."""
    owner, live, stored = shown.owner, shown.activation, shown.database
    verdict = "".join(f"<li class=wrong>{escape(line)}" for line in shown.differences)
    parts = [
        f"<h1>{escape(shown.stream)}</h1>",
        f"<ul>{verdict}</ul>" if verdict else "",
        f"<p class=wrong>No host answers: {escape(shown.unanswered)}</p>" if owner is None else "",
        "<h2>Owner</h2>",
        _table(
            ("", "as it says", "as the log says"),
            (
                ("partition", shown.partition, shown.partition),
                ("host", owner and owner.host, stored.takeover and stored.takeover.host),
                ("incarnation", owner and owner.incarnation, stored.takeover and stored.takeover.incarnation),
                ("takeover position", owner and owner.position, stored.takeover and stored.takeover.position),
                ("taken at", None, stored.takeover and stored.takeover.at),
            ),
        ),
        "<h2>Position</h2>",
        _table(
            ("", "activation", "database"),
            (
                ("offset", live and live.offset, None),
                ("committed offset", live and live.committed_offset, stored.head),
                ("last event at", None, stored.at),
                ("snapshot offset", live and live.snapshot_offset, stored.snapshot_offset),
                ("uncommitted turns", live and live.uncommitted, None),
                ("mailbox", live and live.mailbox, None),
                ("bytes in memory, about", live and live.bytes, None),
                ("idle, seconds", live and live.idle_s, None),
                ("partition's last position", None, stored.position),
                ("published up to position", None, stored.relay_cursor),
            ),
        ),
        "<h2>Last commands</h2>",
        _table(("id", "offset", "at"), ((c.command_id, c.offset, c.at) for c in (live.recent if live else ()))),
        "<h2>Pending reminders</h2>",
        _table(
            ("name", "due at", "fence offset", "where"),
            [(r.name, r.due_at, r.fence_offset, "activation") for r in (live.reminders if live else ())]
            + [(r.name, r.due_at, r.fence_offset, "database") for r in stored.reminders],
        ),
    ]
    return _page(shown.stream, "".join(parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}" for value in row) for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(title)}' for title in head)}{body}</table>"


def _cell(value: Any) -> str:
    return "—" if value is None else escape(str(value))


def _page(title: str, body: str) -> bytes:
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style>{body}".encode()
