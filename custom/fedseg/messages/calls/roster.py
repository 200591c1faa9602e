"""Who may call whom directly in a job, and the secret that each pair of participants shares."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fedseg.errors import RefusalError

SERVER = "server"
_BYTES = 16


@dataclass(frozen=True)
class Roster:
    """The participants with which one of them exchanges calls.

    Each pair has a secret of its own, so that nobody can call in the name of another one.

    >>> rosters = new_rosters(["server", "a", "b"])
    >>> rosters["a"].knows("b", rosters["b"].secrets["a"])
    True
    >>> rosters["a"].knows("b", rosters["server"].secrets["a"])
    False

    Attributes:
        secrets: by the name of the other participant.
    """

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def knows(self, caller: str, secret: str) -> bool:
        """Whether this is the secret that the caller shares with the owner of this roster."""
        own = self.secrets.get(caller, "")
        return bool(own) and hmac.compare_digest(secret.encode(), own.encode())


def new_secret() -> str:
    """A random secret of 128 bits, as hexadecimal digits."""
    return secrets.token_hex(_BYTES)


def new_rosters(names: Collection[str]) -> dict[str, Roster]:
    """A roster for each participant, with a fresh secret for each pair of them."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for one, other in combinations(sorted(names), 2):
        found[one][other] = found[other][one] = new_secret()
    return {name: Roster(own) for name, own in found.items()}


def read_roster(header: Any) -> Roster:
    """The roster of a site from a header of its task: the secret that it shares with the server, or those of all pairs.

    Raises:
        RefusalError: the header holds no secret (reason ``state``).
    """
    content = header if isinstance(header, Mapping) else {SERVER: header}
    if not content or not all(isinstance(secret, str) and secret for secret in content.values()):
        raise RefusalError("state", "The task brings no secret by which the server's calls are known.")
    return Roster(dict(content))
