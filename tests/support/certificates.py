"""A certificate authority for tests, and what it issues, as PEM files."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
NAMES = ("localhost", "127.0.0.1")


class Files(NamedTuple):
    certificate: Path
    key: Path

    def settings(self, road: str) -> dict[str, str]:
        """What tells a platform of them."""
        return {f"{road}_tls_certificate": str(self.certificate), f"{road}_tls_key": str(self.key)}


class Authority:
    """Issues certificates for this machine; `file` is its own one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "authority.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of tests")])
        made = self._builder(self._name, self._key, 0, 30).add_extension(
            x509.BasicConstraints(True, None), critical=True
        )
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = made.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._certificate = made.add_extension(identifier, critical=False).sign(self._key, hashes.SHA256())
        self.file.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(
        self, name: str = "server", *, since_days: float = -1, days: float = 20, passphrase: bytes | None = None
    ) -> Files:
        """A certificate with its chain, and its key, in files of that name, which are replaced one after the other."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [
            x509.DNSName(each) if each == "localhost" else x509.IPAddress(ipaddress.ip_address(each)) for each in NAMES
        ]
        made = self._builder(subject, key, since_days, days).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = made.add_extension(identifier, critical=False).sign(self._key, hashes.SHA256())
        files = Files(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        hidden = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        chain = certificate.public_bytes(Encoding.PEM) + b"\n" + self._certificate.public_bytes(Encoding.PEM)
        for path, content in (
            (files.certificate, chain),
            (files.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden)),
        ):
            draft = path.with_suffix(f"{path.suffix}.draft")
            draft.write_bytes(content)
            draft.replace(path)
        return files

    def context(self, version: ssl.TLSVersion | None = None, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """What a client needs that trusts this authority and no other, and speaks only that version if one is given."""
        context = ssl.create_default_context(cafile=str(self.file))
        if version is not None:
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = version
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, since_days: float, days: float
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + (since_days - 1) * DAY)
            .not_valid_after(now + days * DAY)
        )
