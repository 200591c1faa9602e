"""By what a site knows the server's direct calls: a secret of its own, which comes with the task of the round."""

from __future__ import annotations

import secrets

_BYTES = 16


class CallSecrets:
    """A random secret for each site that is called.

    No other site may know it, so each has its own. It lives as long as this process of the server, and not for one
    round: a site that has missed the end of a round must know the first call of the next one.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, site: str) -> str:
        """The secret of a site; made when it is first asked for."""
        return self._known.setdefault(site, secrets.token_hex(_BYTES))

    def known(self, site: str) -> str | None:
        """The secret of a site that was or will be called; None for any other."""
        return self._known.get(site)
