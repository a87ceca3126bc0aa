"""Certificates and their keys: read and judged together, and read anew when their files change.

TLS 1.3 is the only version: its suites are all good ones, so that there is nothing to configure.
"""

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

log = logging.getLogger("renoveasy.gateway")

PROTOCOLS: Final = ("http/1.1",)
"""What is spoken inside of TLS (ALPN)."""
_LARGEST_BYTES: Final = 1 << 20

Mark = tuple[tuple[int, int, int] | None, ...]
"""What tells two states of files apart, without reading them."""


class CertificateError(Exception):
    """The files cannot be used; the text names one and says why."""


class Pair(NamedTuple):
    """A certificate with its key. `pem` is both, the certificate and its chain first."""

    pem: bytes
    names: tuple[str, ...]
    ends: datetime
    """When the first certificate of the chain expires."""
    leaf: bytes
    """DER."""


def read_pair(chain: str, key: str, now: datetime) -> Pair:
    """The certificate and its key, which belong together and are valid now.

    Raises:
        CertificateError: they cannot be used.
    """
    chain_pem, key_pem = _read(chain), _read(key)
    try:
        certificates = x509.load_pem_x509_certificates(chain_pem)
    except ValueError:
        raise CertificateError(f"{chain} holds no certificate in PEM") from None
    try:
        private = load_pem_private_key(key_pem, None)
    except TypeError:
        raise CertificateError(f"{key} needs a passphrase, which nobody can type in") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{key} holds no private key in PEM") from None
    leaf = certificates[0]
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != private.public_key().public_bytes(*spki):
        raise CertificateError(f"{key} is not the key of the first certificate in {chain}")
    for certificate in certificates:
        if certificate.not_valid_after_utc <= now:
            raise CertificateError(f"{chain} has expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if certificate.not_valid_before_utc > now:
            raise CertificateError(f"{chain} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    return Pair(
        chain_pem.strip() + b"\n" + key_pem.strip() + b"\n", _names(leaf), ends, leaf.public_bytes(Encoding.DER)
    )


def server_context(chain: str, key: str) -> ssl.SSLContext:
    """What a server needs to speak TLS 1.3 with this certificate. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(list(PROTOCOLS))
    try:
        context.load_cert_chain(chain, key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise CertificateError(f"{chain} and {key} cannot be used together: {error}") from None
    return context


def mark_of(paths: Sequence[str]) -> Mark:
    return tuple(_mark(path) for path in paths)


class Certificate:
    """The context for new connections. `refresh` follows the files; what cannot be used leaves the old one in its place.

    Connections that stand keep what they began with.
    """

    def __init__(self, chain: str, key: str, now_s: Callable[[], float]) -> None:
        """`now_s` is the wall clock. Raises CertificateError."""
        self._chain, self._key, self._now_s = chain, key, now_s
        self._mark = mark_of((chain, key))
        self.context = self._loaded()

    def refresh(self) -> bool:
        """Read the files if they have changed since they were last looked at; whether there is a new context.

        A renewal may find one file written and the other one not yet: that is looked at again when the next one changes.
        """
        mark = mark_of((self._chain, self._key))
        if mark == self._mark:
            return False
        self._mark = mark
        try:
            self.context = self._loaded()
        except CertificateError as error:
            log.error("the certificate stays as it is: %s", error)
            return False
        log.info("a new certificate is in use: %s", self._chain)
        return True

    def _loaded(self) -> ssl.SSLContext:
        read_pair(self._chain, self._key, datetime.fromtimestamp(self._now_s(), UTC))
        return server_context(self._chain, self._key)


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_BYTES:
        raise CertificateError(f"{path} is larger than a certificate can be")
    return content


def _mark(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # of what a link leads to
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def _no_passphrase() -> str:
    raise ValueError("the key needs a passphrase")
