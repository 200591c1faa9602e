"""Signatures of sites under blocks: made with the key of a site's kit, checked against the federation's root.

FLARE provisions an RSA key and a certificate for each site, ``startup/client.key`` and ``startup/client.crt``, which
the root certificate ``startup/rootCA.pem`` issued directly. A signature is RSA-PSS with SHA-256 over a prefix, so that
it cannot pass for a signature of another purpose, and the block's digest.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from fedseg.errors import DataError
from fedseg.files.names import SITE
from fedseg.provenance.swarm.blocks import Block
from fedseg.provenance.swarm.errors import SignatureError, SwarmLedgerError

KEY_FILE, CERTIFICATE_FILE, ROOT_FILE = "client.key", "client.crt", "rootCA.pem"
LONGEST_CERTIFICATE, LONGEST_VALUE = 8192, 1400
_LEAST_BITS = 2048
_PURPOSE = b"fedseg-swarm-block-1\n"
_HASH = hashes.SHA256()
_PADDING = PSS(MGF1(_HASH), PSS.DIGEST_LENGTH)


@dataclass(frozen=True)
class Signature:
    """That a site stands for a block. Without a value it is only its word, as in a simulation, where sites have no kit.

    Attributes:
        site: name.
        certificate: of the site, in PEM form; empty without a value.
        value: of the signature, in base64.
    """

    site: str
    certificate: str = ""
    value: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {"site": self.site, "certificate": self.certificate, "value": self.value}

    @classmethod
    def from_json(cls, content: Any) -> Signature:
        """Read what ``to_json`` wrote.

        Raises:
            SwarmLedgerError: it is another thing.
        """
        longest = {"site": 64, "certificate": LONGEST_CERTIFICATE, "value": LONGEST_VALUE}
        if not isinstance(content, Mapping) or set(content) != set(longest):
            raise SwarmLedgerError("This is no signature: it does not hold a site, a certificate and a value alone.")
        for name, most in longest.items():
            if not isinstance(content[name], str) or len(content[name]) > most:
                raise SwarmLedgerError(f"The {name} of a signature is not a text of at most {most} letters.")
        if not SITE.fits(content["site"]):
            raise SwarmLedgerError(f"A signature is not that of a site: {content['site']!r} is no site's name.")
        return cls(**content)


@dataclass(frozen=True)
class SignedBlock:
    """A block with the signatures that are known, at most one for each site, by name."""

    block: Block
    signatures: tuple[Signature, ...] = ()

    def signed_by(self, signatures: Iterable[Signature]) -> SignedBlock:
        """The same block with more signatures; a site that has one keeps it."""
        known = {signature.site: signature for signature in (*signatures, *reversed(self.signatures))}
        return replace(self, signatures=tuple(known[site] for site in sorted(known)))

    @property
    def sites(self) -> tuple[str, ...]:
        """Whose signatures are there."""
        return tuple(signature.site for signature in self.signatures)

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {"block": self.block.to_json(), "signatures": [each.to_json() for each in self.signatures]}

    @classmethod
    def from_json(cls, content: Any) -> SignedBlock:
        """Read what ``to_json`` wrote.

        Raises:
            SwarmLedgerError: it is another thing.
        """
        if not isinstance(content, Mapping) or set(content) != {"block", "signatures"}:
            raise SwarmLedgerError("This is no signed block: it does not hold a block and signatures alone.")
        block, listed = Block.from_json(content["block"]), content["signatures"]
        if not isinstance(listed, list) or len(listed) > len(block.signers):
            raise SwarmLedgerError(f"The block of round {block.round} has no list of its signers' signatures.")
        signatures = tuple(Signature.from_json(each) for each in listed)
        if len({each.site for each in signatures}) < len(signatures):
            raise SwarmLedgerError(f"The block of round {block.round} has two signatures of one site.")
        return cls(block, signatures)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the certificate, in 64 small hexadecimal digits."""
    return certificate.fingerprint(_HASH).hex()


def parsed(certificate: str) -> x509.Certificate:
    """The certificate of a PEM text, which holds it alone and in its one spelling.

    Raises:
        SignatureError: it holds another thing, or more.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.encode("ascii"))
        if pem(found) == certificate:
            return found
    except ValueError:
        pass
    raise SignatureError("cannot be checked: its certificate cannot be read")


def pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def common_name(certificate: x509.Certificate) -> str:
    """The name for which a certificate was issued; empty where it says none or several."""
    return _only(certificate, NameOID.COMMON_NAME)


def organisation(certificate: x509.Certificate) -> str:
    """The organisation for which a certificate was issued; empty where it says none or several."""
    return _only(certificate, NameOID.ORGANIZATION_NAME)


def _only(certificate: x509.Certificate, what: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(what)
    return str(found[0].value) if len(found) == 1 else ""


class Root:
    """The federation's root certificate, which says whose certificates count."""

    def __init__(self, certificate: x509.Certificate) -> None:
        """Keep the certificate.

        Args:
            certificate: of the federation.
        """
        self._certificate = certificate
        self._issued: dict[str, bool] = {}

    @classmethod
    def read(cls, path: Path) -> Root:
        """Read a certificate in PEM form.

        Raises:
            DataError: the file is missing or holds none.
        """
        try:
            return cls(x509.load_pem_x509_certificate(path.read_bytes()))
        except (OSError, ValueError):
            raise DataError(f"{path} cannot be read as the root certificate of a federation (rootCA.pem).") from None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the certificate, in 64 small hexadecimal digits."""
        return fingerprint(self._certificate)

    def check(self, signature: Signature, block: Block) -> None:
        """Check a signature: name, issuer, validity at the time of the block, and the signature itself.

        Raises:
            SignatureError: it does not hold; the text goes on from "the signature of alpha ".
        """
        certificate = parsed(signature.certificate)
        if not self._has_issued(certificate):
            raise SignatureError("has a certificate of another federation: this root certificate did not issue it")
        for what, each in (("a certificate", certificate), ("a root certificate", self._certificate)):
            start, end = each.not_valid_before_utc, each.not_valid_after_utc
            if not start <= block.moment <= end:
                word = "had expired" if block.moment > end else "was not valid yet"
                text = f"has {what} that {word} at {block.time}: it holds from {start:%Y-%m-%d} to {end:%Y-%m-%d}"
                raise SignatureError(text)
        check_value(signature, block, certificate)

    def _has_issued(self, certificate: x509.Certificate) -> bool:
        name = fingerprint(certificate)
        if name not in self._issued:
            try:
                certificate.verify_directly_issued_by(self._certificate)
                self._issued[name] = True
            except (ValueError, TypeError, InvalidSignature):
                self._issued[name] = False
        return self._issued[name]


def check_value(signature: Signature, block: Block, certificate: x509.Certificate | None = None) -> None:
    """Check that a signature is of the site that its certificate names, whoever issued that.

    Raises:
        SignatureError: it does not hold; the text goes on from "the signature of alpha ".
    """
    certificate = certificate or parsed(signature.certificate)
    if common_name(certificate) != signature.site:
        raise SignatureError(f"has a certificate of {common_name(certificate)[:64]!r}")
    key = certificate.public_key()
    if not isinstance(key, RSAPublicKey) or key.key_size < _LEAST_BITS:
        raise SignatureError(f"has no RSA key of at least {_LEAST_BITS} bits, as FLARE provisions them")
    try:
        value = base64.b64decode(signature.value, validate=True)
        key.verify(value, _signed(block), _PADDING, _HASH)
    except (InvalidSignature, ValueError):
        raise SignatureError("is forged, or is one of another block") from None


class Signer:
    """A site with its kit: it signs blocks, and knows the root certificate by which it checks those of others."""

    def __init__(self, key: RSAPrivateKey, certificate: x509.Certificate, root: Root) -> None:
        """Keep key and certificate.

        Args:
            key: private key of the site.
            certificate: of the site.
            root: of the federation.

        Raises:
            SwarmLedgerError: key and certificate do not belong together.
        """
        if certificate.public_key() != key.public_key():
            raise SwarmLedgerError("The private key of this site's kit does not belong to its certificate.")
        self._key, self._certificate, self.root = key, certificate, root

    @classmethod
    def of_kit(cls, startup: Path) -> Signer | None:
        """The signer of a site.

        Args:
            startup: the folder of that name in the site's kit.

        Returns:
            None where there is no kit, as in a simulation.

        Raises:
            SwarmLedgerError: the kit is not whole, or its key is none with which blocks are signed.
        """
        files = [startup / name for name in (KEY_FILE, CERTIFICATE_FILE, ROOT_FILE)]
        if not any(file.exists() for file in files):
            return None
        try:
            key = load_pem_private_key(files[0].read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate(files[1].read_bytes())
            root = Root.read(files[2])
        except (OSError, ValueError, TypeError, DataError):
            names = ", ".join(file.name for file in files)
            raise SwarmLedgerError(
                f"The site cannot sign: its kit lacks a readable {names}. Install the kit again."
            ) from None
        if not isinstance(key, RSAPrivateKey):
            raise SwarmLedgerError("The site cannot sign: the key of its kit is no RSA key, as FLARE provisions them.")
        return cls(key, certificate, root)

    @property
    def site(self) -> str:
        """The name for which the certificate was issued."""
        return common_name(self._certificate)

    def sign(self, block: Block) -> Signature:
        """Sign a block."""
        value = self._key.sign(_signed(block), _PADDING, _HASH)
        return Signature(self.site, pem(self._certificate), base64.b64encode(value).decode("ascii"))


def _signed(block: Block) -> bytes:
    return _PURPOSE + block.digest.encode("ascii")
