"""One rule for each kind of name: what it is made of, as FLARE, certificates and file systems take it.

>>> SITE.check("--names", "hospital-a")
'hospital-a'
>>> SITE.check("--names", "hospital.a")
Traceback (most recent call last):
...
fedseg.errors.ConfigurationError: --names is 'hospital.a', but must be the name of a site: letters, digits, - and _, \
a letter or digit first, at most 64, and not server.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedseg.errors import ConfigurationError

# The longest name that a certificate holds; FLARE cuts the names of projects one letter earlier.
LONGEST = 64


@dataclass(frozen=True)
class NameRule:
    """What a kind of name is made of.

    Attributes:
        kind: whose name it is, with an article.
        pattern: regular expression for the whole name.
        words: the same for people.
        longest: number of letters.
        reserved: what no such name may be, in small letters.
    """

    kind: str
    pattern: str
    words: str
    longest: int = LONGEST
    reserved: str = ""

    def fits(self, value: Any) -> bool:
        """Whether this is such a name."""
        text = value if isinstance(value, str) else ""
        return bool(re.fullmatch(self.pattern, text)) and len(text) <= self.longest and text.lower() != self.reserved

    @property
    def made_of(self) -> str:
        """What such a name is made of, for people."""
        return f"{self.words}, at most {self.longest}" + (f", and not {self.reserved}" if self.reserved else "")

    def check(self, name: str, value: Any) -> str:
        """The value, which must be such a name.

        Args:
            name: the setting as the user wrote it.
            value: what was found.

        Raises:
            ConfigurationError: it is another thing.
        """
        if not self.fits(value):
            raise ConfigurationError(name, value, f"the name of {self.kind}: {self.made_of}")
        return str(value)


_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"

SITE = NameRule(
    "a site",
    r"[A-Za-z0-9][A-Za-z0-9_-]*",
    "letters, digits, - and _, a letter or digit first",
    reserved="server",
)
JOB = NameRule("a job", _PLAIN, "letters, digits, '.', - and _, a letter or digit first", 128)
EXPERIMENT = NameRule("an experiment", _PLAIN, JOB.words, JOB.longest)
ARM = NameRule("an arm", _PLAIN, JOB.words, JOB.longest)
PROJECT = NameRule("a project", _PLAIN, "letters, digits, '.', - and _, a letter or digit first", LONGEST - 1)
HOST = NameRule("a server", rf"{_LABEL}(\.{_LABEL})*", "a host name such as server.example.org")
PERSON = NameRule("a person", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}", "an e-mail address")
ORGANISATION = NameRule("an organisation", r"[A-Za-z0-9_]+", "letters, digits and _")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that some file systems could not tell apart: equal but for small and capital letters."""
    listed = list(names)
    counts = Counter(name.casefold() for name in listed)
    return [name for name in listed if counts[name.casefold()] > 1]
