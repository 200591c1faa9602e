"""What is kept of the scanner that made an image: its maker and its field strength, in a small file beside the image.

The file is the one that converters write beside NIfTI files by the Brain Imaging Data Structure (BIDS): the image's
name with the ending ``.json``, and in it ``Manufacturer`` and ``MagneticFieldStrength``. Nothing else of it is read,
and nothing else is written here: no serial number, no date, and no name of an institution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.allowed import is_number
from fedseg.files.documents import load_json, write_json

MAKERS = {
    "siemens": "Siemens",
    "ge": "GE",
    "general": "GE",
    "philips": "Philips",
    "canon": "Canon",
    "toshiba": "Canon",
    "hitachi": "Fujifilm",
    "fujifilm": "Fujifilm",
    "uih": "United Imaging",
    "united": "United Imaging",
    "bruker": "Bruker",
    "neusoft": "Neusoft",
}
"""The first word of what devices write as their maker, and how it is called here; the maker's successor counts."""
UNKNOWN_MAKER = "another maker"
MOST_TESLA = 21.0
_MAKER, _FIELD = "Manufacturer", "MagneticFieldStrength"


@dataclass(frozen=True)
class ScannerFacts:
    """The scanner of an image, as far as it is known.

    Attributes:
        maker: one of ``makers()``, never the text of a file; None where none is told.
        field_strength: in tesla, to one tenth; None where none is told, as of CT.
    """

    maker: str | None = None
    field_strength: float | None = None


UNKNOWN_SCANNER = ScannerFacts()


def makers() -> tuple[str, ...]:
    """Every name that ``ScannerFacts.maker`` can have."""
    return (*sorted(set(MAKERS.values())), UNKNOWN_MAKER)


def scanner_facts(maker: Any, field_strength: Any) -> ScannerFacts:
    """The facts in a known form, from what a header says; what makes no sense counts as not told.

    >>> scanner_facts("SIEMENS Healthineers", "2.98")
    ScannerFacts(maker='Siemens', field_strength=3.0)
    """
    word = maker.split()[0].strip(".,_-").lower() if isinstance(maker, str) and maker.split() else None
    try:
        tesla = float(field_strength)
    except (TypeError, ValueError):
        tesla = 0.0
    if tesla > MOST_TESLA:
        tesla /= 10_000  # some devices write gauss
    known = is_number(tesla) and 0 < round(tesla, 1) <= MOST_TESLA
    return ScannerFacts(None if word is None else MAKERS.get(word, UNKNOWN_MAKER), round(tesla, 1) if known else None)


def facts_file(image: Path) -> Path:
    """The file with the facts of an image."""
    name = image.name.removesuffix(".gz")
    return image.with_name(f"{name.removesuffix(Path(name).suffix)}.json")


def write_scanner_facts(facts: ScannerFacts, image: Path) -> Path | None:
    """Write the facts beside an image; None, and no file, where nothing is known."""
    content = {_MAKER: facts.maker, _FIELD: facts.field_strength}
    told = {name: value for name, value in content.items() if value is not None}
    return write_json(facts_file(image), told) if told else None


def read_scanner_facts(image: Path) -> ScannerFacts:
    """The facts beside an image; none where there is no such file, or it cannot be read."""
    try:
        content = load_json(facts_file(image))
    except (OSError, ValueError):
        return ScannerFacts()
    return scanner_facts(content.get(_MAKER), content.get(_FIELD)) if isinstance(content, dict) else ScannerFacts()
