"""What Serve starts in HAProxy's place: makes Serve's configuration safe, then becomes HAProxy.

`python -S -E haproxy.py PARENT_PID PROGRAM ADDRESS PORT CERTIFICATE INNER_PORT… -- ARGUMENT…`, where an empty CERTIFICATE
means plain HTTP. Ray Serve 2.60 writes a configuration
in which HAProxy's own pages are open to the world, nobody is told who the client was, a client's own `X-Forwarded-For`
is passed on as if it were true, a request may take for ever to arrive, and an error of HAProxy's own is a bare page without
headers; and its HAProxy outlives a killed Serve, on the REST port.
"""

import re
import signal
import sys
from collections.abc import Collection
from pathlib import Path

import tether  # type: ignore[import-not-found]  # its folder is the first one searched, as this is run as a script

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "Cache-Control": "no-store",
}
"""Those of the REST application (`serve_apps/endpoint.py`), for what HAProxy answers by itself."""


def problem(status: int, title: str, code: str, detail: str, more: str = "") -> str:
    """A problem document as the REST application writes it."""
    return (
        f'{{"type":"urn:renoveasy:problem:{code}","title":"{title}","status":{status},"code":"{code}","detail":"{detail}"'
        f"{more}}}"
    )


_LATE = "The request did not arrive in time; try again with the same id."
_AWAY = "The service cannot answer right now; try again with the same id."
RETRY = ',"retry_after_s":1'
PROBLEMS = {
    400: (
        "Bad Request",
        problem(400, "The request is not valid", "invalid", "The request is not HTTP as it should be."),
    ),
    405: (
        "Method Not Allowed",
        problem(405, "Method not allowed", "method_not_allowed", "Nothing here has this method."),
    ),
    408: ("Request Timeout", problem(408, "Temporarily unavailable", "unavailable", _LATE, RETRY)),
    422: (
        "Unprocessable Content",
        problem(422, "The request is not valid", "invalid", "The transfer encoding is not known."),
    ),
    503: ("Service Unavailable", problem(503, "Temporarily unavailable", "unavailable", _AWAY, RETRY)),
}
"""What HAProxy answers by itself, by status: the reason phrase and the document.

What is no HTTP at all gets HAProxy's own bare page and the end of the connection: that text is in its program.
"""


def error_page(status: int) -> str:
    """A whole answer, with the headers that every answer has."""
    reason, body = PROBLEMS[status]
    retry = "Retry-After: 1\r\n" if RETRY in body else ""
    headers = "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/problem+json\r\n{headers}{retry}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )


def _page(folder: str, status: int) -> str:
    return f"{folder}/error-{status}.http"


FRONTEND = """\
    timeout http-request 10s
    # For who does not read an answer, which the kernel has by then; a handshake of TLS counts as waiting for the client too.
    timeout client 10s
    timeout http-keep-alive 10s
    # What is framed in a way that others may read otherwise goes no further.
    http-request deny deny_status 400 if HTTP_1.0 { req.hdr_cnt(transfer-encoding) gt 0 }
    http-request deny deny_status 400 if !HTTP_1.0 { req.hdr_cnt(host) eq 0 }
    http-request deny deny_status 405 if METH_CONNECT or METH_TRACE
    # A body that fits into the buffer is here before a replica is asked; for the rest the application has a limit.
    http-request wait-for-body time 10s
    # Who the client is goes last, behind what the client says.
    http-request set-var(txn.forwarded) req.fhdr(x-forwarded-for)
    http-request set-header x-forwarded-for "%[var(txn.forwarded)], %[src]" if { var(txn.forwarded) -m found }
    http-request set-header x-forwarded-for %[src] if !{ var(txn.forwarded) -m found }
    http-after-response del-header server
""" + "".join(
    f'    http-after-response set-header {name} "{value}" if !{{ res.hdr({name}) -m found }}\n'
    for name, value in SECURITY_HEADERS.items()
)

TLS = "ssl crt {certificate} ssl-min-ver TLSv1.3 alpn http/1.1"

LOGGED = 'log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq %HM"'
"""`option httplog` without what the client has written: a URL may hold a token or a phone number."""

NOWHERE = r'http-request return status 404 content-type text/plain lf-string "Path [^\n]*'
"""How Serve's HAProxy answers while no application is deployed, a starting one included: as if there were nothing."""


def made_safe(
    configuration: str, address: str, port: int, inner_ports: Collection[int], folder: str, certificate: str = ""
) -> str:
    """The configuration with the public port on `address`, telling who the client is, and inner ports on 127.0.0.1.

    `certificate` is a PEM file with the key in it: then the public port speaks TLS 1.3 and nothing else.
    `folder` is where `write_error_pages` puts what HAProxy answers by itself. Doing it twice changes nothing more.
    """
    pages = "".join(f"    errorfile {status} {_page(folder, status)}\n" for status in PROBLEMS)

    def rebind(match: re.Match[str]) -> str:
        indent, bound = match["indent"], int(match["port"])
        if bound in inner_ports:
            return f"{indent}bind 127.0.0.1:{bound}\n"
        if bound == port:
            tls = f" {TLS.format(certificate=certificate)}" if certificate else ""
            return f"{indent}bind {address}:{bound}{tls}\n{'' if FRONTEND in configuration else pages + FRONTEND}"
        return match[0]

    configuration = re.sub(r"^( +)option httplog$", rf"\1{LOGGED}", configuration, flags=re.MULTILINE)
    configuration = re.sub(NOWHERE, "http-request deny deny_status 503", configuration)
    return re.sub(r"^(?P<indent> +)bind [^ :\n]*:(?P<port>[0-9]+)\n", rebind, configuration, flags=re.MULTILINE)


def write_error_pages(configuration: str, folder: str) -> None:
    """Make the pages that the safe configuration names; Serve's own one, for all that is not of the frontend, too."""
    for status in PROBLEMS:
        Path(_page(folder, status)).write_text(error_page(status), newline="")
    for page in set(re.findall(r"errorfile 50[0-9] (\S+)", configuration)) - {_page(folder, 503)}:
        Path(page).write_text(error_page(503), newline="")


def main(arguments: list[str]) -> None:
    """Never returns."""
    at = arguments.index("--")
    parent, program, address, port, certificate, *inner_ports = arguments[:at]
    for_haproxy = arguments[at + 1 :]
    path = Path(for_haproxy[for_haproxy.index("-f") + 1])
    inner = [int(inner_port) for inner_port in inner_ports]
    configuration = made_safe(path.read_text(), address, int(port), inner, str(path.parent), certificate)
    path.write_text(configuration)
    write_error_pages(configuration, str(path.parent))
    tether.main(int(parent), signal.SIGKILL, [program, *for_haproxy])


if __name__ == "__main__":
    main(sys.argv[1:])
