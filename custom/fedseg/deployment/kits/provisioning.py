"""From a project file to the kits that every participant of a federation installs: thin over FLARE's provisioning."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.prov_utils import prepare_builders, prepare_packager
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import load_private_key

from fedseg.deployment.kits.equipping import check_policy_folder, equip_server, equip_site
from fedseg.deployment.kits.federation_kits import KITS, Federation, describe_federation, pack_kits
from fedseg.deployment.kits.manifest import write_manifest
from fedseg.deployment.kits.project_file import PROJECT_FILE, SERVER, SITE, check_project, role_of
from fedseg.deployment.kits.wheel import build_wheel, check_wheel
from fedseg.errors import FedsegError, UsageError
from fedseg.files.folders import new_folder

AUTHORITY = "authority"


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
        for entry in project["participants"]:
            if entry["type"] == SITE:
                equip_site(folder / KITS / entry["name"], policy)
            elif entry["type"] == SERVER:
                equip_server(folder / KITS / entry["name"], policy)
        if with_wheel:
            given = shutil.copy2(wheel, folder) if wheel is not None else build_wheel(folder)
            for kit in (folder / KITS).iterdir():
                shutil.copy2(given, kit)
        root_key = authority_of(folder / AUTHORITY).key
        for entry in project["participants"]:
            write_manifest(folder / KITS / entry["name"], entry["name"], role_of(entry), root_key)
        pack_kits(folder)
    return describe_federation(project, Path(os.path.abspath(out)))


@dataclass(frozen=True)
class Authority:
    """What a federation's certificates are made from.

    Attributes:
        file: FLARE's store of all certificates and keys.
        root: the root certificate in PEM form.
        key: of the root certificate.
        names: of everybody who has a certificate.
    """

    file: Path
    root: bytes
    key: RSAPrivateKey
    names: frozenset[str]


def authority_of(folder: Path) -> Authority:
    """Read the folder ``authority`` of a provisioned federation.

    Raises:
        UsageError: it is not there, or damaged.
    """
    found = sorted(folder.glob("*/state/cert.json"))
    try:
        (file,) = found
        content = json.loads(file.read_text("ascii"))
        key, root = load_private_key(content["root_pri_key"]), content["root_cert"].encode("ascii")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{folder} does not hold the keys of one provisioned federation.") from None
    return Authority(file, root, key, frozenset(content) - {"root_pri_key", "root_cert"})


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
