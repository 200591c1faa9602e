"""A further site for a provisioned federation: a kit from the same root certificate, and nobody else's is touched."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError, UsageError
from fedseg.kit_manifest import write_manifest
from fedseg.kits import (
    ARCHIVES,
    KITS,
    ROOT_CERTIFICATE,
    SUMS_FILE,
    Federation,
    archive_of,
    describe_federation,
    pack_kits,
    sha256_of,
)
from fedseg.package_wheel import build_wheel
from fedseg.project_file import PROJECT_FILE, SERVER, SITE, check_project
from fedseg.provisioning import AUTHORITY, Authority, authority_of, run_flare
from fedseg.site_kits import check_policy_folder, equip_site

_LONGEST_NAME = 63  # FLARE cuts the names of projects there.


def add_site(
    project: dict[str, Any], name: str, policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make the kit of one more site.

    The server knows its sites by their certificates only, so it goes on as it is. A site that the project file does
    not name yet gets an organisation of its own name.

    Args:
        project: content of the project file from which ``out`` was made; may name the site already.
        name: of the site.
        policy: folder with the files of a site's policy.
        out: the folder of the federation, with ``kits``, ``archives`` and ``authority``.
        wheel: fedseg as this site shall install it; None takes the one in ``out``, so that all sites have the same.
        with_wheel: False leaves the wheel out.

    Returns:
        The federation, with the kit of the new site only.

    Raises:
        UsageError: ``out`` is no provisioned federation of this project, or the name has a kit already.
        ConfigurationError: the name is not fit for a site.
        ProvisioningError: FLARE refuses the project.
    """
    check_project(project)
    check_policy_folder(policy)
    out, entry = Path(os.path.abspath(out)), entry_of(project, name)
    server = next(each for each in project["participants"] if each["type"] == SERVER)
    authority = _authority(project, server["name"], out)
    if (out / KITS / name).exists():
        raise UsageError(f"--add-site {name}: this name has a kit in {out / KITS} already.")
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=out) as scratch:
        folder = Path(scratch)
        shutil.copytree(out / AUTHORITY, folder / AUTHORITY)
        run_flare({**project, "participants": [server, entry]}, folder)
        kit = folder / KITS / name
        equip_site(kit, policy)
        if with_wheel:
            shutil.copy2(wheel or _wheel_of(out) or build_wheel(folder), kit)
        write_manifest(kit, name, SITE, authority.key)
        shutil.rmtree(folder / KITS / server["name"])
        pack_kits(folder)
        # The kit's folder last: it is what says that the site was added. Until then the same command can be repeated,
        # and finds the certificate that was made.
        os.replace(authority_of(folder / AUTHORITY).file, authority.file)
        os.replace(archive_of(folder, name), archive_of(out, name))
        _note_sum(out, name)
        os.replace(kit, out / KITS / name)
    return describe_federation({**project, "participants": [entry]}, out)


def entry_of(project: dict[str, Any], name: str) -> dict[str, Any]:
    """The site's entry in the project file; a new one where there is none.

    Raises:
        ConfigurationError: the name is somebody else's, or not fit for a site.
    """
    for entry in project["participants"]:
        if entry["name"] == name:
            if entry["type"] != SITE:
                raise ConfigurationError("--add-site", name, "the name of a site; in the project file it is another's")
            return dict(entry)
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise ConfigurationError("--add-site", name, "made of letters, digits, - and _")
    return {"name": name, "type": SITE, "org": name.replace("-", "_"), "allow_log_streaming": False}


def _authority(project: dict[str, Any], server: str, out: Path) -> Authority:
    if not (out / KITS).is_dir() or not (out / ARCHIVES).is_dir():
        raise UsageError(f"--out {out} is no folder of a provisioned federation, to which a site could be added.")
    authority, root = authority_of(out / AUTHORITY), out / KITS / server / "startup" / ROOT_CERTIFICATE
    if server not in authority.names or authority.file.parents[1].name != project["name"][:_LONGEST_NAME]:
        raise UsageError(
            f"--out {out} was made from another {PROJECT_FILE}: it holds {authority.file.parents[1].name!r}, and not "
            f"{project['name']!r} with the server {server}."
        )
    if root.is_file() and root.read_bytes() != authority.root:
        raise UsageError(f"{out / AUTHORITY} belongs to another federation than the kits beside it.")
    return authority


def _wheel_of(out: Path) -> Path | None:
    return next(iter(sorted(out.glob("*.whl"))), None)


def _note_sum(out: Path, name: str) -> None:
    """Add the archive's fingerprint to those of the others."""
    path, archive = out / ARCHIVES / SUMS_FILE, archive_of(out, name)
    others = [line for line in path.read_text("utf-8").splitlines() if not line.endswith(f"  {archive.name}")]
    lines = [*others, f"{sha256_of(archive)}  {archive.name}"]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
