"""What can be wrong with a block, a signature or a ledger of the swarm; no text names a file."""

from __future__ import annotations

from typing import Any

from fedseg.errors import FedsegError


class SwarmLedgerError(FedsegError):
    """A block cannot be taken, or the ledger at hand is not what was written. The text may leave a site."""


class SignatureError(SwarmLedgerError):
    """A signature does not hold: it is forged, or its certificate is not one that counts."""


class ForkError(SwarmLedgerError):
    """Two accepted blocks follow the same block.

    Attributes:
        leaders: of the block that is held here, and of the other one.
        signed_both: sites that signed both.
    """

    def __init__(self, text: str, leaders: tuple[str, str], signed_both: tuple[str, ...]) -> None:
        super().__init__(text)
        self.leaders, self.signed_both = leaders, signed_both

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.leaders, self.signed_both)
