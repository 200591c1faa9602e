"""Checks of a kit itself: its files, its certificates, its key."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from nvflare.lighter.constants import ProvFileName
from nvflare.lighter.utils import verify_folder_signature

from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.container_runtime import TAKEN_AWAY, Runtime, runtime_of
from fedseg.deployment.kits.installed_kit import LOCAL, START_SCRIPT, STARTUP, InstalledKit
from fedseg.deployment.kits.manifest import MANIFEST_FILE, changed_files, read_manifest
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, listed, red, yellow
from fedseg.errors import DataError

ENDS_SOON = timedelta(days=30)
_OWN = f"{LOCAL}/fedseg.json"
_ANEW = "Unpack the archive that you were sent into a new folder; if it is damaged too, ask the coordinator for it."
_SECRETS = ("*.key", "client_context.tenseal")


def check_files(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Nothing is missing, and nothing is other than what the coordinator sent, but for what the site fills in."""
    runtime = runtime_of(kit.folder)
    needed = [kit.root, kit.certificate, kit.key, kit.configuration]
    needed += [kit.folder / STARTUP / START_SCRIPT] if runtime is None else []
    needed += [kit.local / name for name in ("resources.json", "authorization.json", "fedseg.json")]
    needed += [kit.local / "privacy.json"] if kit.is_site else []
    missing = [path.relative_to(kit.folder).as_posix() for path in needed if not path.is_file()]
    if missing:
        # `nvflare deploy prepare` deletes local/resources.json; nothing is damaged.
        remedy = f"fedseg equip {shlex.quote(str(kit.folder))}" if runtime is not None else _ANEW
        yield red("files", f"Missing in the kit: {listed(missing)}.", remedy)
        return
    # A prepared kit lacks scripts that FLARE has signed, and has others; the coordinator's list, below, is as strict.
    signed = runtime is None and (kit.folder / STARTUP / ProvFileName.SIGNATURE_JSON).is_file()
    if signed and not _signature_holds(kit):
        yield red("files", "A file in startup is not the one that was signed.", _ANEW)
        return
    yield _compared(kit, runtime)


def _signature_holds(kit: InstalledKit) -> bool:
    folder = str(kit.folder / STARTUP)
    try:
        name = ProvFileName.SIGNATURE_JSON
        return bool(verify_folder_signature(folder, str(kit.root), single_signer=True, signature_file=name))
    except Exception:
        # Whatever FLARE stumbles over in a damaged signature, it is none that holds.
        return False


def _compared(kit: InstalledKit, runtime: Runtime | None) -> CheckResult:
    """The kit's files against the coordinator's signed list."""
    try:
        manifest = read_manifest(kit.folder)
    except DataError as error:
        return red("files", str(error), _ANEW)
    if manifest is None:
        remedy = (
            "Compare the SHA-256 of the archive (sha256sum FILE) with the coordinator's by telephone. A kit that you "
            "made yourself, with your own key, has none: then compare the root's fingerprint below."
        )
        found = f"All are there. Without {MANIFEST_FILE} nothing says whether they were changed."
        return yellow("files", found, remedy)
    if manifest.participant != kit.name:
        return red("files", f"The list of files is of {manifest.participant}, the kit of {kit.name}.", _ANEW)
    missing, changed = changed_files(kit.folder, manifest)
    changed = [name for name in changed if name != _OWN]
    missing = [name for name in missing if runtime is None or name not in TAKEN_AWAY]
    grave = missing + [name for name in changed if not name.startswith(f"{LOCAL}/")]
    if grave:
        return red("files", f"Missing or changed since the kit was made: {listed(grave)}.", _ANEW)
    if runtime is None and not changed:
        return green("files", f"{len(manifest.files)} files are as the coordinator signed them ({_OWN} is yours).")
    return _changed_by_the_site(changed, runtime)


def _changed_by_the_site(changed: list[str], runtime: Runtime | None) -> CheckResult:
    if runtime is not None:
        found = f"Made ready for {runtime.name} by `nvflare deploy prepare`: {listed(changed) or 'nothing'} changed."
        remedy = f"Check the kit as it came, too. This one is started by {runtime.start}."
        return yellow("files", f"{found} All else is as the coordinator signed it.", remedy)
    remedy = f"Was that you? If not, take the files from the archive. ({_OWN} is yours to change and does not count.)"
    return yellow("files", f"Changed since the kit was made: {listed(changed)}.", remedy)


def check_certificates(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Root, certificate and key belong together, are this site's, and are valid now."""
    try:
        chain = x509.load_pem_x509_certificates(kit.certificate.read_bytes())
        root = x509.load_pem_x509_certificate(kit.root.read_bytes())
    except (OSError, ValueError):
        yield red("certificate", "The certificate or the root certificate cannot be read.", _ANEW)
        return
    names = [str(a.value) for a in chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not _issued(chain, root):
        found = "The certificate was not issued by the root certificate in the kit: they are of two federations."
        yield red("certificate", found, _ANEW)
    elif names != [kit.name]:
        yield red("certificate", f"The certificate is of {', '.join(names)}, the kit of {kit.name}.", _ANEW)
    else:
        fingerprint = read_certificate(kit.root).fingerprint
        yield green("certificate", f"Of {kit.name}, issued by the root {fingerprint}.")
    yield _key_fits(kit, chain[0])
    for what, certificate in (("certificate", chain[0]), ("root certificate", root)):
        yield _dates(what, certificate, options)


def _issued(chain: list[x509.Certificate], root: x509.Certificate) -> bool:
    try:
        for child, parent in pairwise([*chain, root]):
            child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key_fits(kit: InstalledKit, certificate: x509.Certificate) -> CheckResult:
    try:
        key = load_pem_private_key(kit.key.read_bytes(), password=None)
    except PermissionError:
        remedy = f"Work as its owner ({_owner(kit.key)}), or as root: chown -R USER {shlex.quote(str(kit.folder))}"
        return red("key", f"{STARTUP}/{kit.key.name} belongs to another user, and you may not read it.", remedy)
    except (OSError, ValueError, TypeError):
        return red("key", f"{STARTUP}/{kit.key.name} cannot be read as a private key.", _ANEW)
    if key.public_key() != certificate.public_key():
        return red("key", f"{STARTUP}/{kit.key.name} does not belong to the certificate.", _ANEW)
    return green("key", "It belongs to the certificate.")


def _dates(what: str, certificate: x509.Certificate, options: CheckOptions) -> CheckResult:
    now, start, end = options.now(), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    check = f"{what}: dates"
    if now < start:
        return red(check, f"Valid from {start:%Y-%m-%d %H:%M} UTC on only.", "Is the clock of this machine right?")
    if now >= end:
        return red(check, f"Expired on {end:%Y-%m-%d %H:%M} UTC.", "Ask the coordinator for a new kit.")
    days = (end - now).days
    if end - now <= ENDS_SOON:
        return yellow(check, f"Ends in {days} days, on {end:%Y-%m-%d}.", "Ask the coordinator for a new kit now.")
    return green(check, f"Valid until {end:%Y-%m-%d}, {days} days more.")


def check_key_modes(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Nobody but the owner may read a secret, and it is the owner who works here."""
    secrets = [path for pattern in _SECRETS for path in sorted((kit.folder / STARTUP).glob(pattern))]
    open_ones = [path for path in secrets if _others_may(path)]
    for path in open_ones:
        found = f"{STARTUP}/{path.name} is open to other users (mode {stat.S_IMODE(path.stat().st_mode):04o})."
        command = shlex.join(["chmod", "600", str(path)])
        remedy = f"{command}   If others use this machine, ask the coordinator for a new kit: they may have it."
        yield red("key file", found, remedy)
    foreign = [path for path in secrets if path.stat().st_uid != os.geteuid()]
    if foreign and not open_ones:
        found = f"{STARTUP}/{foreign[0].name} belongs to {_owner(foreign[0])}, and you are another user."
        yield yellow("key file", found, "Run fedseg and FLARE as that user, who could not use files that you make.")
    elif secrets and not open_ones:
        yield green("key file", "Only its owner may read it.")


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        # A number without a name, such as of the coordinator's own machine, if root has unpacked the archive.
        return f"user {path.stat().st_uid}"


def _others_may(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
