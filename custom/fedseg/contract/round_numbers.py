"""How rounds are counted: from 0 in files and messages, as FLARE does; from 1 in whatever people read or type."""

from __future__ import annotations

from collections.abc import Iterable


def nth(number: int) -> int:
    """The number of a round as people read it; 0 stands for the model before the first round.

    >>> nth(0), nth(-1)
    (1, 0)
    """
    return number + 1


def from_nth(number: int) -> int:
    """The number of a round in files and messages, from what somebody typed."""
    return number - 1


def listed(numbers: Iterable[int]) -> str:
    """Rounds as people read them: ``1, 3 and 4``; ``none`` where there is none.

    >>> listed([0, 2, 3])
    '1, 3 and 4'
    """
    words = [str(nth(number)) for number in numbers]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words) or "none"
