"""What a kit on disk is: whose, of which server, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.project_file import SERVER, SITE
from fedseg.errors import DataError, UsageError
from fedseg.files.documents import load_json

STARTUP, LOCAL = "startup", "local"
START_SCRIPT, ROOT_CERTIFICATE, RESOURCES_FILE = "sub_start.sh", "rootCA.pem", "resources.json"
CONFIGURATIONS = {SERVER: "fed_server.json", SITE: "fed_client.json"}
"""FLARE's description of a participant, in ``startup``, by role."""


@dataclass(frozen=True)
class InstalledKit:
    """The unpacked kit of a site or of the server.

    Attributes:
        folder: of the kit, without links.
        role: ``client`` for a site, or ``server``.
        name: of the participant.
        project: name of the federation.
        host, port: under which the server is reached.
        scheme: how FLARE speaks with it: ``http`` (over TLS), ``grpc`` or ``tcp``.
        server_name: the name that the server's certificate must bear.
    """

    folder: Path
    role: str
    name: str
    project: str
    host: str
    port: int
    scheme: str
    server_name: str

    @property
    def address(self) -> str:
        """The server as ``host:port``."""
        return f"{self.host}:{self.port}"

    @property
    def is_site(self) -> bool:
        """Whether it is a site's kit, and not the server's."""
        return self.role == SITE

    @property
    def certificate(self) -> Path:
        """File with the participant's own certificate."""
        return certificate_file(self.folder, self.role)

    @property
    def key(self) -> Path:
        """File with the participant's private key."""
        return self.certificate.with_suffix(".key")

    @property
    def root(self) -> Path:
        """File with the certificate of the federation."""
        return self.folder / STARTUP / ROOT_CERTIFICATE

    @property
    def configuration(self) -> Path:
        """FLARE's own description of the participant."""
        return self.folder / STARTUP / CONFIGURATIONS[self.role]

    @property
    def local(self) -> Path:
        """The folder whose files belong to the participant."""
        return self.folder / LOCAL


def certificate_file(kit: Path, role: str) -> Path:
    """The participant's own certificate in a kit: of the server, a site, or a person of any role."""
    return kit / STARTUP / ("server.crt" if role == SERVER else "client.crt")


def role_on_disk(kit: Path) -> str | None:
    """``server`` or ``client``, by FLARE's description in a folder; None for a person's kit and for every other one."""
    found = [role for role, name in CONFIGURATIONS.items() if (kit / STARTUP / name).is_file()]
    return found[0] if len(found) == 1 else None


def read_kit(folder: Path) -> InstalledKit:
    """Read an unpacked kit of a site or of the server.

    Raises:
        UsageError: the folder is none.
        DataError: FLARE's description in it is damaged.
    """
    folder = folder.resolve()
    role = role_on_disk(folder)
    if role is None:
        names = " or ".join(f"{STARTUP}/{name}" for name in sorted(CONFIGURATIONS.values()))
        raise UsageError(f"--kit {folder} is no kit of a site or of the server: it has no {names}.")
    path = folder / STARTUP / CONFIGURATIONS[role]
    try:
        return _parse(folder, role, load_json(path))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is damaged ({why}). Unpack the kit again, into a new folder.") from None


def _parse(folder: Path, role: str, content: Any) -> InstalledKit:
    server = content["servers"][0]
    host, _, port = str(server["service"]["target"]).rpartition(":")
    if not host:
        raise ValueError("the server's address has no port")
    server_name = str(server["identity"] if role == SITE else server["admin_server"])
    name = str(content["client"]["fqsn"]).rpartition(".")[2] if role == SITE else server_name
    scheme = str(server["service"].get("scheme", "grpc"))
    return InstalledKit(folder, role, name, str(server["name"]), host, int(port), scheme, server_name)
