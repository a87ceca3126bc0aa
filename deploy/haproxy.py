"""What Serve starts in HAProxy's place: makes Serve's configuration safe, then becomes HAProxy.

`python -S -E haproxy.py PARENT_PID PROGRAM ADDRESS PORT INNER_PORT… -- ARGUMENT…`. Ray Serve 2.60 writes a configuration
in which HAProxy's own pages are open to the world, nobody is told who the client was, a client's own `X-Forwarded-For`
is passed on as if it were true, a request may take for ever to arrive, and an error of HAProxy's own is a bare 500; and
its HAProxy outlives a killed Serve, on the REST port.
"""

import re
import signal
import sys
from collections.abc import Collection
from pathlib import Path

import tether  # type: ignore[import-not-found]  # its folder is the first one searched, as this is run as a script

FRONTEND = """\
    timeout http-request 10s
    # Who the client is goes last, behind what the client says.
    http-request set-var(txn.forwarded) req.fhdr(x-forwarded-for)
    http-request set-header x-forwarded-for "%[var(txn.forwarded)], %[src]" if { var(txn.forwarded) -m found }
    http-request set-header x-forwarded-for %[src] if !{ var(txn.forwarded) -m found }
"""

_BODY = (
    '{"type":"about:blank","title":"Service Unavailable","status":503,"code":"unavailable",'
    '"detail":"The service cannot answer right now; try again with the same id.","retry_after_s":1}'
)
UNAVAILABLE = (
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Content-Type: application/problem+json\r\n"
    "Cache-Control: no-store\r\n"
    "Retry-After: 1\r\n"
    f"Content-Length: {len(_BODY)}\r\n"
    f"\r\n{_BODY}"
)
"""What a client gets when no replica answers: the catalogue's `unavailable`."""


NOWHERE = r'http-request return status 404 content-type text/plain lf-string "Path [^\n]*'
"""How Serve's HAProxy answers while no application is deployed, a starting one included: as if there were nothing."""


def made_safe(configuration: str, address: str, port: int, inner_ports: Collection[int]) -> str:
    """The configuration with the public port on `address`, telling who the client is, and inner ports on 127.0.0.1.

    Doing it twice changes nothing more.
    """

    def rebind(match: re.Match[str]) -> str:
        indent, bound = match["indent"], int(match["port"])
        if bound in inner_ports:
            return f"{indent}bind 127.0.0.1:{bound}\n"
        if bound == port:
            return f"{indent}bind {address}:{bound}\n{'' if FRONTEND in configuration else FRONTEND}"
        return match[0]

    configuration = re.sub(NOWHERE, "http-request deny deny_status 503", configuration)
    return re.sub(r"^(?P<indent> +)bind [^ :\n]*:(?P<port>[0-9]+)\n", rebind, configuration, flags=re.MULTILINE)


def main(arguments: list[str]) -> None:
    """Never returns."""
    at = arguments.index("--")
    parent, program, address, port, *inner_ports = arguments[:at]
    for_haproxy = arguments[at + 1 :]
    path = Path(for_haproxy[for_haproxy.index("-f") + 1])
    configuration = made_safe(path.read_text(), address, int(port), [int(inner) for inner in inner_ports])
    path.write_text(configuration)
    for page in set(re.findall(r"errorfile 503 (\S+)", configuration)):
        Path(page).write_text(UNAVAILABLE, newline="")
    tether.main(int(parent), signal.SIGKILL, [program, *for_haproxy])


if __name__ == "__main__":
    main(sys.argv[1:])
