"""Text of DICOM files in the character set that each file names (DICOM PS3.3, C.12.1.1.2)."""

from __future__ import annotations

import re
import unicodedata

# By the number at the end of the defined term: ISO_IR 100, ISO 2022 IR 100...
_CODECS = {
    "6": "ascii",
    "100": "latin_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "144": "iso8859_5",
    "127": "iso8859_6",
    "126": "iso8859_7",
    "138": "iso8859_8",
    "148": "iso8859_9",
    "203": "iso8859_15",
    "13": "shift_jis",
    "87": "iso2022_jp_2",
    "159": "iso2022_jp_2",
    "149": "euc_kr",
    "58": "gb2312",
    "166": "tis_620",
    "192": "utf_8",
    "18030": "gb18030",
    "GBK": "gbk",
}
_ESCAPES = re.compile(rb"\x1b\$\)[AC]")  # before Korean and Chinese, whose bytes tell themselves apart


def decode(raw: bytes, character_set: str) -> str:
    """Bytes of a DICOM file as text, padding removed; bytes that the set does not know are written as ``\\xe4``.

    Args:
        raw: the value as it stands in the file.
        character_set: value of Specific Character Set (0008,0005), empty where the file has none.
    """
    terms = [re.sub(r".*?(\d+|GBK)$", r"\1", term.strip()) for term in character_set.split("\\")]
    codecs = [_CODECS[term] for term in terms if term in _CODECS]
    if codecs:
        text = _ESCAPES.sub(b"", raw).decode(codecs[-1], "backslashreplace")
    else:
        try:
            text = raw.decode("utf_8")
        except UnicodeDecodeError:
            text = raw.decode("latin_1")  # nothing but ASCII is allowed then; most files that break this mean it
    return unicodedata.normalize("NFC", text.strip(" \0"))
