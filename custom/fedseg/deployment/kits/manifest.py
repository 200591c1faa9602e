"""The list of a kit's files with their hashes, signed by the federation: how a site knows that its kit is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from nvflare.lighter.utils import sign_content, verify_content

from fedseg.deployment.kits.installed_kit import LOCAL, ROOT_CERTIFICATE, STARTUP, InstalledKit
from fedseg.deployment.kits.provisioned_kits import sha256_of
from fedseg.errors import DataError
from fedseg.files.documents import load_json, write_json
from fedseg.version import __version__

MANIFEST_FILE = "fedseg_kit.json"
SCHEMA = "fedseg-kit-1"


@dataclass(frozen=True)
class Manifest:
    """What a kit was when it was made.

    Attributes:
        participant, role: whose kit it is.
        fedseg_version, nvflare_version: with which the federation was provisioned.
        files: SHA-256 by path from the kit's folder, with ``/``; all files but the manifest.
    """

    participant: str
    role: str
    fedseg_version: str
    nvflare_version: str
    files: dict[str, str]


def write_manifest(kit: Path, participant: str, role: str, root_key: RSAPrivateKey) -> None:
    """List and sign the files of a complete kit.

    Args:
        kit: the folder.
        participant: whose it is.
        role: of the participant.
        root_key: of the federation's root certificate.
    """
    files = {path.relative_to(kit).as_posix(): sha256_of(path) for path in sorted(kit.rglob("*")) if path.is_file()}
    content = {
        "schema": SCHEMA,
        "participant": participant,
        "role": role,
        "fedseg_version": __version__,
        "nvflare_version": metadata.version("nvflare"),
        "files": {name: digest for name, digest in files.items() if name != MANIFEST_FILE},
    }
    content["signature"] = sign_content(_signed(content), root_key)
    write_json(kit / MANIFEST_FILE, content)


def read_manifest(kit: Path) -> Manifest | None:
    """The manifest of a kit, once its signature is verified; None for a kit without one.

    Raises:
        DataError: it is damaged, or not signed by the root certificate in the kit.
    """
    path = kit / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        content = load_json(path)
        signature, files = content.pop("signature"), dict(content["files"])
        manifest = Manifest(
            str(content["participant"]),
            str(content["role"]),
            str(content["fedseg_version"]),
            str(content["nvflare_version"]),
            files,
        )
        root = x509.load_pem_x509_certificate((kit / STARTUP / ROOT_CERTIFICATE).read_bytes())
        verify_content(_signed(content), signature, root.public_key())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{MANIFEST_FILE} is damaged ({type(error).__name__}).") from None
    except InvalidSignature:
        raise DataError(f"{MANIFEST_FILE} is not signed by the kit's root certificate.") from None
    return manifest


def kit_files(kit: InstalledKit) -> list[Path]:
    """Files and folders that belong to a kit, whatever else its user keeps beside them."""
    return [kit.folder / name for name in (STARTUP, LOCAL, MANIFEST_FILE)]


def changed_files(kit: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
    """The files of a manifest that are gone, and those that are not as they were; new files do not count."""
    missing = [name for name in manifest.files if not (kit / name).is_file()]
    changed = [name for name, digest in manifest.files.items() if name not in missing and _differs(kit / name, digest)]
    return missing, changed


def _differs(path: Path, digest: str) -> bool:
    try:
        return sha256_of(path) != digest
    except OSError:
        return True


def _signed(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
