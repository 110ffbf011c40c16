"""Certificates: those that PUBLIC_URL and Kafka's brokers show, and those in files. How long they last, and for whom.

No chain is verified: who connects does that, and a private authority is none that this machine has to know.
"""

import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from services.doctor.findings import Finding, fail, in_thread, ok, warn

SOON: Final = timedelta(days=21)
CONNECT_SECONDS = 5.0


async def of_address(url: str) -> list[Finding]:
    """The certificate of an https address; one that is not https has none."""
    parts = urlsplit(url)
    name = "certificate PUBLIC_URL"
    if parts.scheme != "https" or parts.hostname is None:
        return [ok(name, f"{parts.scheme}: there is none to look at")]
    return await _of_place("PUBLIC_URL", parts.hostname, parts.port or 443)


async def of_brokers(bootstrap: str) -> list[Finding]:
    """The certificate of each broker of `host:port[,host:port]`."""
    places = [urlsplit(f"//{one.strip()}") for one in bootstrap.split(",") if one.strip()]
    return [
        found
        for place in places
        for found in await _of_place("KAFKA_BOOTSTRAP", place.hostname or "", place.port or 9092)
    ]


async def of_file(path: Path) -> list[Finding]:
    """The first certificate of a PEM file."""
    name = f"certificate {path}"
    try:
        certificate = x509.load_pem_x509_certificate(await in_thread(path.read_bytes))
    except (OSError, ValueError) as error:
        return [fail(name, f"cannot be read ({type(error).__name__})", "mend DOCTOR_CERTIFICATES, or the file")]
    return [judged(name, certificate, datetime.now(UTC))]


async def _of_place(variable: str, host: str, port: int) -> list[Finding]:
    name = f"certificate {variable}"
    try:
        shown = await in_thread(lambda: _shown(host, port))
    except OSError as error:
        return [fail(name, f"{host} port {port} does not answer ({type(error).__name__})", "see whether it is up")]
    return [judged(name, x509.load_der_x509_certificate(shown), datetime.now(UTC), host=host)]


def judged(name: str, certificate: x509.Certificate, now: datetime, host: str | None = None) -> Finding:
    """One certificate at an instant, and for a host where it is shown by one; `name` ends in what says the host."""
    end = certificate.not_valid_after_utc
    if end <= now:
        return fail(name, f"ran out on {end:%Y-%m-%d}", "renew it: who connects refuses it")
    if certificate.not_valid_before_utc > now:
        return fail(name, f"is valid from {certificate.not_valid_before_utc:%Y-%m-%d} only", "set the clock, or renew")
    if host is not None and not _is_for(certificate, host):
        return fail(name, f"is not for {host}", f"get one for this name, or mend {name.rpartition(' ')[2]}")
    if end - now < SOON:
        return warn(name, f"runs out on {end:%Y-%m-%d}, in {(end - now).days} days", "renew it")
    return ok(name, f"valid until {end:%Y-%m-%d}")


def _shown(host: str, port: int) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is to be read, whatever is wrong with it
    with (
        socket.create_connection((host, port), timeout=CONNECT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def _is_for(certificate: x509.Certificate, host: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        wanted = host.lower().rstrip(".")
        wild = f"*.{wanted.partition('.')[2]}"
        return not {wanted, wild}.isdisjoint(name.lower() for name in names.get_values_for_type(x509.DNSName))
