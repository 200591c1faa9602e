"""From a project file to the kits that every participant of a federation installs: thin over FLARE's provisioning."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.prov_utils import prepare_builders, prepare_packager
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from fedseg.deployment.kits.authority import AUTHORITY, authority_of
from fedseg.deployment.kits.manifest import write_manifest
from fedseg.deployment.kits.policy_files import check_policy_folder, forbid_training, write_policy
from fedseg.deployment.kits.project_file import EVALUATE_ONLY, PROJECT_FILE, check_project, role_of
from fedseg.deployment.kits.provisioned_kits import KITS, Federation, describe_federation, pack_kits
from fedseg.deployment.kits.readme import write_readme
from fedseg.deployment.kits.wheel import build_wheel, check_wheel
from fedseg.errors import FedsegError
from fedseg.files.folders import new_folder


class ProvisioningError(FedsegError):
    """FLARE could not make the kits of a project."""


def provision(
    project: dict[str, Any], policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make the kits of a project; all of them or nothing.

    The kits of the server and of the sites get fedseg's policy files, all kits the wheel. ``out/authority`` holds the
    keys of the project: whoever has it can be anybody in this federation.

    Args:
        project: content of a project file.
        policy: folder with the files of a site's policy.
        out: a new or empty folder.
        wheel: fedseg as the participants shall install it; None builds it from the sources.
        with_wheel: False leaves the wheel out, where all participants use one installation.

    Raises:
        UsageError: ``out`` is not empty, a file is missing, or the wheel is of another version than this fedseg.
        ConfigurationError: the project is not one that could train.
        ProvisioningError: FLARE refuses the project.
    """
    check_project(project)
    check_policy_folder(policy)
    if wheel is not None:
        check_wheel(wheel)
    with new_folder(out) as folder:
        run_flare(project, folder)
        if with_wheel:
            wheel = Path(shutil.copy2(wheel, folder)) if wheel is not None else build_wheel(folder)
        root_key = authority_of(folder / AUTHORITY).key
        for entry in project["participants"]:
            complete_kit(
                folder / KITS / entry["name"],
                entry,
                policy,
                wheel if with_wheel else None,
                root_key,
                str(project["name"]),
            )
        pack_kits(folder)
    return describe_federation(project, Path(os.path.abspath(out)))


def complete_kit(
    kit: Path, entry: Mapping[str, Any], policy: Path, wheel: Path | None, root_key: RSAPrivateKey, project: str
) -> None:
    """Add to a kit of FLARE what fedseg needs, and sign the list of all files.

    Args:
        kit: as FLARE made it.
        entry: of the participant in the project file.
        policy: folder with the files of a site's policy.
        wheel: fedseg as the participant shall install it; None leaves it out.
        root_key: of the federation's root certificate.
        project: name of the federation.
    """
    write_readme(kit, entry, project)
    write_policy(kit, entry["type"], policy)
    if entry.get(EVALUATE_ONLY):
        forbid_training(kit)
    if wheel is not None:
        shutil.copy2(wheel, kit)
    write_manifest(kit, entry["name"], role_of(entry), root_key)


def run_flare(project: dict[str, Any], folder: Path) -> None:
    """Let FLARE make certificates and start-up files; its kits move to ``kits``, its keys stay in ``authority``.

    Certificates that ``authority`` holds already are used again.

    Raises:
        ProvisioningError: FLARE refuses the project.
    """
    authority = folder / AUTHORITY
    authority.mkdir(mode=0o700, exist_ok=True)
    log, content = _Log(), copy.deepcopy(project)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            provisioner = Provisioner(str(authority), prepare_builders(content), prepare_packager(content))
            context = provisioner.provision(prepare_project(content), logger=log)
    except Exception as error:
        raise ProvisioningError(f"{PROJECT_FILE}: {error}") from None
    if context.get(CtxKey.BUILD_ERROR):
        raise ProvisioningError(f"{PROJECT_FILE}: {log.complaint}")
    shutil.move(context[CtxKey.CURRENT_PROD_DIR], folder / KITS)
    for path in authority.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


class _Log:
    """What FLARE says while it provisions; only its last complaint is of interest."""

    complaint = ""

    def info(self, text: str) -> None:
        """Not shown."""

    debug = info

    def error(self, text: str) -> None:
        """Kept."""
        self.complaint = text

    warning = error
