"""What can go wrong, as types: each message names the thing, its value, what is allowed, and what to do."""

from __future__ import annotations

from typing import Any

# Of a value in a message: somebody else may have written it, as long as they liked.
LONGEST = 500


class FedsegError(Exception):
    """The work failed for a reason that a person can mend. The command line ends with exit code 1 and this text."""


class UsageError(FedsegError):
    """The command was called wrongly. The command line ends with exit code 2 and this text."""


class ConfigurationError(FedsegError):
    """A setting has a value that is not allowed."""

    def __init__(self, name: str, value: Any, allowed: str, remedy: str = "") -> None:
        """Say which setting is wrong.

        Args:
            name: the setting as the user wrote it, e.g. ``training.local_epochs``.
            value: what was found.
            allowed: what may stand there, as a noun phrase; ``absent: the settings are ...`` for an unknown name.
            remedy: what to do, as a sentence; empty when ``allowed`` says it all.
        """
        found = "missing" if value is None else _short(repr(as_lists(value)))
        text = f"{name} is {found}, but must be {allowed}."
        if allowed.startswith("absent"):
            text = f"{name} is not known{allowed.removeprefix('absent')}."
        super().__init__(f"{text} {remedy}".strip())
        self.name, self.value, self.allowed, self.remedy = name, value, allowed, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.allowed, self.remedy)


def as_lists(value: Any) -> Any:
    """Tuples, also within tuples and lists, as lists: the form in which people write them."""
    return [as_lists(entry) for entry in value] if isinstance(value, tuple | list) else value


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class DataError(FedsegError):
    """Images, labels or lists of them that cannot be used. May name files: show it at the site only."""


class RefusalError(FedsegError):
    """A site refuses what a job asks. The text leaves the site, so it names no file and no patient."""

    def __init__(self, reason: str, text: str) -> None:
        """Refuse.

        Args:
            reason: one word for machines: ``version``, ``plan``, ``task``, ``data``, ``weights``, ``loss``, ``state``,
                ``report``, ``memory``, ``policy``, ``privacy``, ``guard`` or ``history``.
            text: one sentence for people, free of file names and patient ids.
        """
        super().__init__(text)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, str(self))


class AbortedError(FedsegError):
    """The work was asked to stop, and it stopped."""
