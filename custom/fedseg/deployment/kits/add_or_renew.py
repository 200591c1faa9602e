"""``fedseg provision --add-site`` and ``--renew``: one new kit in a federation that exists; the others stay.

Everybody knows the others by the root certificate and by names, so nobody else needs anything new.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.authority import AUTHORITY, Authority, authority_of, remove_participant
from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.installed_kit import ROOT_CERTIFICATE, STARTUP, certificate_file
from fedseg.deployment.kits.policy_files import check_policy_folder
from fedseg.deployment.kits.project_file import PROJECT_FILE, SERVER, SITE, check_project, role_of
from fedseg.deployment.kits.provisioned_kits import (
    ARCHIVES,
    KITS,
    SUMS_FILE,
    Federation,
    archive_of,
    describe_federation,
    pack_kits,
    sha256_of,
)
from fedseg.deployment.kits.provisioning import complete_kit, run_flare
from fedseg.deployment.kits.wheel import build_wheel, check_wheel, wheel_version
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.documents import write_whole
from fedseg.files.names import SITE as SITE_NAME
from fedseg.files.names import repeated
from fedseg.version import __version__

REPLACED = "replaced"
_LONGEST_NAME = 63  # FLARE cuts the names of projects there.


def add_site(
    project: dict[str, Any], name: str, policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make the kit of one more site.

    A site that the project file does not name yet gets an organisation of its own name.

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
        UsageError: ``out`` is no provisioned federation of this project, the name has a kit already, or the wheel is of
            another version.
        ConfigurationError: the name is not fit for a site.
        ProvisioningError: FLARE refuses the project.
    """
    check_project(project)
    entry = entry_of(project, name)
    if (out / KITS / name).exists():
        where = Path(os.path.abspath(out)) / KITS
        raise UsageError(f"--add-site {name}: this name has a kit in {where} already. `--renew` makes it anew.")
    return _make_kit(project, entry, policy, out, wheel, with_wheel)


def entry_of(project: dict[str, Any], name: str) -> dict[str, Any]:
    """The site's entry in the project file; a new one where there is none.

    Raises:
        ConfigurationError: the name is somebody else's, or not fit for a site.
    """
    if (entry := _named(project, name)) is not None:
        if entry["type"] != SITE:
            raise ConfigurationError("--add-site", name, "the name of a site; in the project file it is another's")
        return entry
    SITE_NAME.check("--add-site", name)
    if repeated([name, *(str(each["name"]) for each in project["participants"])])[:1] == [name]:
        raise ConfigurationError(
            "--add-site", name, "another name than those in the project file, in small letters, too"
        )
    return {"name": name, "type": SITE, "org": name.replace("-", "_"), "allow_log_streaming": False}


def renew_kit(
    project: dict[str, Any], name: str, policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make a new kit, with a new key and certificate, for the server, a site or a person.

    The old certificate stays good until it ends, since FLARE has no list of revoked ones; the old kit moves to
    ``out/replaced``. The project must name the participant, since a person's role and an organisation's rights come
    from there. Arguments, result and errors are otherwise those of ``add_site``.
    """
    check_project(project)
    entry = _named(project, name)
    if entry is None:
        raise UsageError(
            f"--renew {name}: {PROJECT_FILE} does not name it. Write its line there first; `--add-site` has printed it."
        )
    if name not in _authority(project, out).names:
        where = os.path.abspath(out)
        raise UsageError(
            f"--renew {name}: it never had a kit of the federation in {where}. For a site take --add-site."
        )
    return _make_kit(project, entry, policy, out, wheel, with_wheel)


def _make_kit(
    project: dict[str, Any], entry: dict[str, Any], policy: Path, out: Path, wheel: Path | None, with_wheel: bool
) -> Federation:
    """Make a kit with a new key and a new certificate, and put it in its place."""
    check_policy_folder(policy)
    out = Path(os.path.abspath(out))
    authority, name = _authority(project, out), str(entry["name"])
    wheel = check_wheel(wheel) if wheel is not None else _wheel_of(out) if with_wheel else None
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as scratch:
        folder = Path(scratch)
        shutil.copytree(out / AUTHORITY, folder / AUTHORITY)
        # FLARE reuses a certificate that it finds under a name: it might be one of a key that was lost.
        remove_participant(folder / AUTHORITY, name)
        server = next(dict(each) for each in project["participants"] if each["type"] == SERVER)
        others = [] if entry["type"] == SERVER else [entry]
        run_flare({**project, "participants": [server, *others]}, folder)
        for kit in (folder / KITS).iterdir():
            if kit.name != name:
                shutil.rmtree(kit)
        if with_wheel and wheel is None:
            wheel = build_wheel(folder)
        complete_kit(folder / KITS / name, entry, policy, wheel, authority.key, str(project["name"]))
        pack_kits(folder)
        _install(folder, out, name, role_of(entry), authority)
    return describe_federation({**project, "participants": [entry]}, out)


def _install(made: Path, out: Path, name: str, role: str, authority: Authority) -> None:
    """Move a complete kit into the federation's folder; one that has the name already moves to ``replaced``."""
    os.replace(authority_of(made / AUTHORITY).file, authority.file)
    os.replace(archive_of(made, name), archive_of(out, name))
    _note_sum(out, name)
    kit = out / KITS / name
    if kit.exists():
        (out / REPLACED).mkdir(mode=0o700, exist_ok=True)
        number = read_certificate(certificate_file(kit, role)).fingerprint.replace(":", "")[:16]
        os.replace(kit, out / REPLACED / f"{name}-{number}")
    # The kit's folder last: it is what says that all was done. Until then the same command can be repeated.
    os.replace(made / KITS / name, kit)


def _named(project: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The participant's entry in the project file."""
    return next((dict(each) for each in project["participants"] if each["name"] == name), None)


def _authority(project: dict[str, Any], out: Path) -> Authority:
    """The keys of a provisioned federation, once it is clear that they belong to this project and these kits.

    Raises:
        UsageError: they do not.
    """
    out = Path(os.path.abspath(out))
    if not (out / KITS).is_dir() or not (out / ARCHIVES).is_dir():
        raise UsageError(f"--out {out} is no folder of a provisioned federation, to which a kit could be added.")
    server = next(each["name"] for each in project["participants"] if each["type"] == SERVER)
    authority, root = authority_of(out / AUTHORITY), out / KITS / server / STARTUP / ROOT_CERTIFICATE
    if server not in authority.names or authority.file.parents[1].name != project["name"][:_LONGEST_NAME]:
        raise UsageError(
            f"--out {out} was made from another {PROJECT_FILE}: it holds {authority.file.parents[1].name!r}, and not "
            f"{project['name']!r} with the server {server}."
        )
    if root.is_file() and root.read_bytes() != authority.root:
        raise UsageError(f"{out / AUTHORITY} belongs to another federation than the kits beside it.")
    return authority


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


def _note_sum(out: Path, name: str) -> None:
    """Write the archive's fingerprint among those of the others."""
    path, archive = out / ARCHIVES / SUMS_FILE, archive_of(out, name)
    others = [line for line in path.read_text("utf-8").splitlines() if not line.endswith(f"  {archive.name}")]
    lines = [*others, f"{sha256_of(archive)}  {archive.name}"]
    write_whole(path, "".join(f"{line}\n" for line in lines))
