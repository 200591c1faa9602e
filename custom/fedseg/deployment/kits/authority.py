"""The keys of a federation: the folder ``authority``, from which FLARE makes every certificate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from nvflare.lighter.utils import load_private_key

from fedseg.errors import UsageError

AUTHORITY = "authority"
_ROOT_KEY, _ROOT = "root_pri_key", "root_cert"


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
        key, root = load_private_key(content[_ROOT_KEY]), content[_ROOT].encode("ascii")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{folder} does not hold the keys of one provisioned federation.") from None
    return Authority(file, root, key, frozenset(content) - {_ROOT_KEY, _ROOT})


def remove_participant(folder: Path, name: str) -> None:
    """Remove a participant's key and certificate from a copy of ``authority``, so that FLARE makes new ones."""
    file = authority_of(folder).file
    content = json.loads(file.read_text("ascii"))
    content.pop(name, None)
    file.write_text(json.dumps(content), "ascii")
