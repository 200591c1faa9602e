"""A site's note of encrypted sums that were none, by which it ends the use of a key.

Whoever prepares ciphertexts learns from each whether it was taken for a sum, which is a little of the secret key: some
thousand such answers are all of it (Chenal and Tang, "On key recovery attacks against existing somewhat homomorphic
encryption schemes", LATINCRYPT 2014).
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedseg.errors import RefusalError

logger = logging.getLogger(__name__)
# No run id begins with an underscore.
FILE = "_forged_sums"
MOST = 8


def check_forged(state: Path, key: str) -> None:
    """Refuse to decrypt under a key with which too many sums were forged.

    Args:
        state: the site's state folder, which all runs share.
        key: its name.

    Raises:
        RefusalError: they were (reason ``privacy``), or the note cannot be read (``state``).
    """
    note = state / FILE
    try:
        forged = note.read_text("ascii").split().count(key) if note.exists() else 0
    except (OSError, UnicodeDecodeError) as error:
        logger.error("The note of forged sums %s cannot be read: %s", note, error)
        raise RefusalError("state", "The site's note of forged sums cannot be read; its own log says why.") from None
    if forged >= MOST:
        raise RefusalError(
            "privacy",
            f"{forged} messages under the key {key} were not the sums that they were said to be, so this site decrypts "
            "nothing under it any more. Find out who sent them, and make a new key for all sites.",
        )


def note_forged(state: Path, key: str) -> None:
    """Add a sum that was forged."""
    logger.error("An encrypted sum under the key %s was forged, or damaged at the server", key)
    with (state / FILE).open("a", encoding="ascii") as file:
        file.write(f"{key}\n")
