"""The kit of one participant of a federation that exists: made with a new key, and nobody else's is touched."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.equipping import equip_server, equip_site
from fedseg.deployment.kits.federation_kits import (
    ARCHIVES,
    KITS,
    ROOT_CERTIFICATE,
    SUMS_FILE,
    Federation,
    archive_of,
    certificate_file,
    describe_federation,
    pack_kits,
    sha256_of,
)
from fedseg.deployment.kits.manifest import write_manifest
from fedseg.deployment.kits.project_file import PROJECT_FILE, SERVER, SITE, role_of
from fedseg.deployment.kits.provisioning import AUTHORITY, Authority, authority_of, run_flare
from fedseg.deployment.kits.wheel import build_wheel, check_wheel, wheel_version
from fedseg.errors import UsageError
from fedseg.version import __version__

REPLACED = "replaced"
_LONGEST_NAME = 63  # FLARE cuts the names of projects there.


def make_kit(
    project: dict[str, Any],
    entry: dict[str, Any],
    policy: Path,
    out: Path,
    wheel: Path | None = None,
    with_wheel: bool = True,
) -> Federation:
    """Make a kit with a new key and a new certificate, and put it in its place.

    A kit that has the name already moves to ``out/replaced``: its key is good until its certificate ends.

    Args:
        project: content of the project file from which ``out`` was made.
        entry: of the participant, as in a project file.
        policy: folder with the files of a site's policy.
        out: the folder of the federation, with ``kits``, ``archives`` and ``authority``; absolute.
        wheel: fedseg as the participant shall install it; None takes the one in ``out``, so that all have the same.
        with_wheel: False leaves the wheel out.

    Returns:
        The federation, with this kit only.

    Raises:
        UsageError: ``out`` is no provisioned federation of this project, or its wheel is of another version.
        ProvisioningError: FLARE refuses the project.
    """
    authority, name, role = federation_authority(project, out), str(entry["name"]), role_of(entry)
    wheel = check_wheel(wheel) if wheel is not None else _wheel_of(out) if with_wheel else None
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as scratch:
        folder = Path(scratch)
        shutil.copytree(out / AUTHORITY, folder / AUTHORITY)
        # FLARE takes the certificate that it finds under a name: it might be one of a key that was lost.
        _forget(authority_of(folder / AUTHORITY).file, name)
        run_flare({**project, "participants": [_server(project), *([entry] if role != SERVER else [])]}, folder)
        for other in (folder / KITS).iterdir():
            if other.name != name:
                shutil.rmtree(other)
        kit = folder / KITS / name
        if role == SITE:
            equip_site(kit, policy)
        elif role == SERVER:
            equip_server(kit, policy)
        if with_wheel:
            shutil.copy2(wheel or build_wheel(folder), kit)
        write_manifest(kit, name, role, authority.key)
        pack_kits(folder)
        # The kit's folder last: it is what says that all was done. Until then the same command can be repeated.
        os.replace(authority_of(folder / AUTHORITY).file, authority.file)
        os.replace(archive_of(folder, name), archive_of(out, name))
        _note_sum(out, name)
        _set_aside(out, name)
        os.replace(kit, out / KITS / name)
    return describe_federation({**project, "participants": [entry]}, out)


def federation_authority(project: dict[str, Any], out: Path) -> Authority:
    """The keys of a provisioned federation, once it is clear that they belong to this project and these kits.

    Raises:
        UsageError: they do not.
    """
    if not (out / KITS).is_dir() or not (out / ARCHIVES).is_dir():
        raise UsageError(f"--out {out} is no folder of a provisioned federation, to which a kit could be added.")
    server = _server(project)["name"]
    authority, root = authority_of(out / AUTHORITY), out / KITS / server / "startup" / ROOT_CERTIFICATE
    if server not in authority.names or authority.file.parents[1].name != project["name"][:_LONGEST_NAME]:
        raise UsageError(
            f"--out {out} was made from another {PROJECT_FILE}: it holds {authority.file.parents[1].name!r}, and not "
            f"{project['name']!r} with the server {server}."
        )
    if root.is_file() and root.read_bytes() != authority.root:
        raise UsageError(f"{out / AUTHORITY} belongs to another federation than the kits beside it.")
    return authority


def _server(project: dict[str, Any]) -> dict[str, Any]:
    return next(dict(each) for each in project["participants"] if each["type"] == SERVER)


def _forget(file: Path, name: str) -> None:
    """Take a participant's key and certificate out of a copy of FLARE's store."""
    content = json.loads(file.read_text("ascii"))
    content.pop(name, None)
    file.write_text(json.dumps(content), "ascii")


def _wheel_of(out: Path) -> Path | None:
    """The wheel that the federation was made with; None where it was made without one.

    Raises:
        UsageError: it is of another version than this fedseg, whose lists of classes would not fit it.
    """
    versions = {version: path for path in sorted(out.glob("*.whl")) if (version := wheel_version(path)) is not None}
    if versions and __version__ not in versions:
        raise UsageError(
            f"The wheel in {out} is fedseg {', '.join(versions)}, and this is fedseg {__version__}, whose lists do not "
            f"fit it. Run this command with that version, or name the wheel of this one by --wheel."
        )
    return versions.get(__version__)


def _set_aside(out: Path, name: str) -> None:
    """Move a kit out of the way of its successor, under a name that no other kit ever gets."""
    kit = out / KITS / name
    if kit.exists():
        (out / REPLACED).mkdir(mode=0o700, exist_ok=True)
        number = read_certificate(certificate_file(kit)).fingerprint.replace(":", "")[:16]
        os.replace(kit, out / REPLACED / f"{name}-{number}")


def _note_sum(out: Path, name: str) -> None:
    """Write the archive's fingerprint among those of the others."""
    path, archive = out / ARCHIVES / SUMS_FILE, archive_of(out, name)
    others = [line for line in path.read_text("utf-8").splitlines() if not line.endswith(f"  {archive.name}")]
    lines = [*others, f"{sha256_of(archive)}  {archive.name}"]
    new = path.with_name(f".{path.name}")
    new.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    os.replace(new, path)
