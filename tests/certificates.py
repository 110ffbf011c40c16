"""Certificates for the tests: self-signed, or by an authority of their own."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Files(NamedTuple):
    """Where a certificate and its key are, as PEM."""

    certificate: Path
    key: Path


def self_signed(folder: Path, *, days: float, name: str = "localhost", before: float = -400) -> Files:
    """One that is valid from so many days ago (`before`, negative) to so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _written(folder, "own", key, _made(name, key, _named("attache"), key, days=days, before=before))


@dataclass(frozen=True)
class Authority:
    """Signs what it is asked to; `certificate` is what those who trust it take."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: Path

    def issue(self, name: str, *, days: float = 60) -> Files:
        """A certificate for a host, or for a client of that name."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _written(self.folder, name, key, _made(name, key, _named("authority"), self.key, days=days, before=-400))


def authority(folder: Path) -> Authority:
    """One that nobody else trusts."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(_named("authority"), _named("authority"), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_for_signing(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(folder, key, _written(folder, "authority", key, made).certificate)


def _made(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    *,
    days: float,
    before: float,
) -> x509.Certificate:
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        names.append(x509.IPAddress(IPv4Address("127.0.0.1")))
    return (
        x509.CertificateBuilder(issuer, _named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=before))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
        .sign(by, hashes.SHA256())
    )


def _written(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, made: x509.Certificate) -> Files:
    files = Files(folder / f"{name}.crt", folder / f"{name}.key")
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.key.write_bytes(key.private_bytes(*plain))
    return files


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _for_signing() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
