"""What a certificate says: whose it is, until when, and the fingerprint by which people compare it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedseg.errors import DataError


@dataclass(frozen=True)
class Certificate:
    """A certificate in words.

    Attributes:
        subject: distinguished name in the form of RFC 4514, such as ``CN=hospital-a,O=hospital_a``.
        not_before, not_after: the time in which it is valid (UTC).
        fingerprint: SHA-256 over the certificate, as ``openssl x509 -fingerprint -sha256`` prints it.
    """

    subject: str
    not_before: datetime
    not_after: datetime
    fingerprint: str


def read_certificate(path: Path) -> Certificate:
    """Read a certificate in PEM form.

    Raises:
        DataError: the file is missing or holds none.
    """
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a certificate: {error}.") from None
    return Certificate(
        found.subject.rfc4514_string(),
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        found.fingerprint(hashes.SHA256()).hex(":").upper(),
    )
