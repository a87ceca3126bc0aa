"""The certificates of both roads: judged before a start; REST's is given to HAProxy, which takes a new one while it runs.

HAProxy gets a copy that is known to be good, in the run folder: what somebody is just writing never reaches it, and whenever
Serve starts it anew it finds the last good one.
"""

import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from deploy.runtime import StartError
from deploy.settings import Settings, key_of
from gateway.certificates import CertificateError, Pair, mark_of, read_pair, server_context

log = logging.getLogger(__name__)

Road = Literal["http", "ws"]
ROADS: Final[dict[Road, str]] = {"http": "REST", "ws": "WebSocket"}
_ANSWER_S: Final = 5.0


def judged(settings: Settings, road: Road) -> Pair | None:
    """The road's certificate; None where it has none. Raises CertificateError."""
    chain, key = files_of(settings, road)
    if not chain:
        return None
    pair = read_pair(chain, key, datetime.now(UTC))
    server_context(chain, key)  # TLS itself may find a key too short
    return pair


def files_of(settings: Settings, road: Road) -> tuple[str, str]:
    """The certificate and its key; two empty texts where the road has none."""
    chain, key = key_fields(road)
    return str(getattr(settings, chain)), str(getattr(settings, key))


def key_fields(road: Road) -> tuple[str, str]:
    """The names of the two settings."""
    return f"{road}_tls_certificate", f"{road}_tls_key"


def check_certificates(settings: Settings) -> None:
    """Return if every certificate that is set can be used. Raises StartError, which names the settings."""
    for road in ROADS:
        try:
            judged(settings, road)
        except CertificateError as error:
            raise StartError(f"{error} ({' and '.join(key_of(field) for field in key_fields(road))})") from None


class RestCertificate:
    """HAProxy's copy of REST's certificate."""

    def __init__(self, settings: Settings, folder: Path | None = None) -> None:
        """`folder`: where HAProxy's files are, its socket `s` somewhere below; None: where Serve has them."""
        self._settings = settings
        self._folder = folder or settings.run_dir / "h"
        self.path = self._folder / "rest.pem"
        self._mark = mark_of(files_of(settings, "http"))

    def install(self) -> None:
        """Make the copy, before HAProxy starts. Raises StartError."""
        check_certificates(self._settings)
        self._mark = mark_of(files_of(self._settings, "http"))
        self._copy()

    def refresh(self) -> None:
        """Look whether the files have changed, and have HAProxy use what is new: connections that stand stay.

        What cannot be used is logged once, and nothing changes.
        """
        mark = mark_of(files_of(self._settings, "http"))
        if mark == self._mark:
            return
        self._mark = mark
        try:
            pem = self._copy()
            for at in self._folder.rglob("s"):
                _hand_over(at, self.path, pem)
        except (CertificateError, OSError) as error:
            log.error("REST's certificate stays as it is: %s", error)
        else:
            log.info("a new certificate is in use for REST")

    def _copy(self) -> bytes:
        pair = judged(self._settings, "http")
        assert pair is not None
        # An empty line would end what HAProxy is told over its socket.
        pem = b"\n".join(line for line in pair.pem.splitlines() if line.strip()) + b"\n"
        draft = self.path.with_suffix(".draft")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        draft.replace(self.path)
        return pem


def _hand_over(at: Path, name: Path, pem: bytes) -> None:
    """Have the HAProxy behind that socket use the certificate for its next handshakes. Raises OSError."""
    for command, expected in (
        (b"set ssl cert %b <<\n%b\n" % (os.fsencode(name), pem), b"Transaction"),
        (b"commit ssl cert %b\n" % os.fsencode(name), b"Success"),
    ):
        answer = _told(at, command)
        if expected not in answer:
            raise OSError(f"HAProxy says {answer.decode(errors='replace').strip()}")


def _told(at: Path, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(at))
        connection.sendall(command)
        answer = b""
        while part := connection.recv(4096):
            answer += part
        return answer
