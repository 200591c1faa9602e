"""What went over in the direct calls of a round, for the site's own record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fedseg.messages.calls.call import Call


@dataclass
class CallTally:
    """Counts the calls of one round that this site has answered.

    Attributes:
        calls: how many.
        bytes_in, bytes_out: of the calls, and of the answers.
        left: kinds of arrays in the answers, such as ``features``.
    """

    calls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    left: set[str] = field(default_factory=set)

    def add(self, bytes_in: int, bytes_out: int, answer: Call | None) -> None:
        """One more; ``answer`` is None where the call was refused."""
        self.calls, self.bytes_in, self.bytes_out = self.calls + 1, self.bytes_in + bytes_in, self.bytes_out + bytes_out
        self.left |= {kind for kind, group in answer.arrays.items() if group} if answer is not None else set()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "left": sorted(self.left)}
