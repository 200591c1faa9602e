"""The kits that provisioning has written: what each participant gets, as a folder and as one file to send."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.certificates import Certificate, read_certificate
from fedseg.deployment.kits.installed_kit import ROOT_CERTIFICATE, STARTUP, certificate_file
from fedseg.deployment.kits.project_file import role_of

KITS, ARCHIVES, SUMS_FILE = "kits", "archives", "SHA256SUMS"


@dataclass(frozen=True)
class Kit:
    """What one participant gets.

    Attributes:
        name: of the participant, as in the project file.
        role: ``server``, ``client`` for a site, or the role of a person.
        folder: the kit itself.
        archive: the kit as one file, to be sent.
        sha256: of the archive, as ``sha256sum`` prints it.
        certificate: of the participant.
    """

    name: str
    role: str
    folder: Path
    archive: Path
    sha256: str
    certificate: Certificate


@dataclass(frozen=True)
class Federation:
    """Everything that was provisioned.

    Attributes:
        project: its name.
        folder: what holds kits, archives, and the authority's keys.
        root: the certificate that signed all others.
        kits: in the order of the project file.
    """

    project: str
    folder: Path
    root: Certificate
    kits: tuple[Kit, ...]

    def of_role(self, role: str) -> list[Kit]:
        """The kits of all participants with this role."""
        return [kit for kit in self.kits if kit.role == role]


def describe_federation(project: Mapping[str, Any], folder: Path) -> Federation:
    """Read back what was made.

    Args:
        project: content of the project file.
        folder: with ``kits`` and ``archives``.

    Raises:
        DataError: a certificate cannot be read.
    """
    kits = []
    for entry in project["participants"]:
        name, role = entry["name"], role_of(entry)
        kit, archive = folder / KITS / name, archive_of(folder, name)
        certificate = read_certificate(certificate_file(kit, role))
        kits.append(Kit(name, role, kit, archive, sha256_of(archive), certificate))
    root = read_certificate(kits[0].folder / STARTUP / ROOT_CERTIFICATE)
    return Federation(str(project["name"]), folder, root, tuple(kits))


def archive_of(folder: Path, name: str) -> Path:
    """Where the archive of a participant's kit lies."""
    return folder / ARCHIVES / f"{name}.tar.gz"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_kits(folder: Path) -> None:
    """Write every kit as one file, readable for its owner only since it holds a private key, and all fingerprints."""
    (folder / ARCHIVES).mkdir()
    lines = []
    for kit in sorted((folder / KITS).iterdir()):
        target = archive_of(folder, kit.name)
        private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(private, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(kit, arcname=kit.name)
        lines.append(f"{sha256_of(target)}  {target.name}\n")
    (folder / ARCHIVES / SUMS_FILE).write_text("".join(lines), "utf-8")
