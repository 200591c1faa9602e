"""Texts that leave a site: they name no file, no folder and no patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Datalist, read_datalist
from fedseg.errors import DataError, RefusalError
from fedseg.site.profile import SiteProfile

LONGEST = 1000
SHORTEST_NAME = 3
_LOOKS_LIKE_A_FILE = re.compile(
    r"(?:^|[\s'\"(=:])(?:~|[A-Za-z]:)?[/\\]+[\w.-]+[/\\]"  # an absolute path with at least one folder
    r"|\.(?:nii|nii\.gz|dcm|mha|mhd|nrrd|tenseal|safetensors|pt)\b",
    re.IGNORECASE,
)


def check_text(text: Any, profile: SiteProfile, plan: Plan) -> None:
    """Refuse a text of an error that tells more than it should.

    Patient ids and file stems shorter than ``SHORTEST_NAME`` are not looked for: they would be found in any text.

    Raises:
        RefusalError: it is no text, too long, or names something of the site (reason ``guard``).
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise RefusalError("guard", "The site's guard kept an error back: its text is none, or too long.")
    folders = (*profile.datasets.values(), profile.state, profile.cache, profile.ledger, profile.encryption_context)
    if _LOOKS_LIKE_A_FILE.search(text) or any(str(folder) in text for folder in folders):
        raise RefusalError("guard", "The site's guard kept the text of an error back: it names a file or folder.")
    names = [name for name in _patient_names(profile, plan) if len(name) >= SHORTEST_NAME]
    if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names):
        raise RefusalError("guard", "The site's guard kept the text of an error back: it names a patient.")


def _patient_names(profile: SiteProfile, plan: Plan) -> Iterable[str]:
    """Ids of the site's patients and the names of their files; none where the site has no such data."""
    try:
        datalist: Datalist = read_datalist(profile.datalist(plan.dataset))
    except (DataError, RefusalError):
        return
    for case in (*datalist.training, *datalist.validation, *datalist.test):
        yield case.patient
        yield from (path.name.split(".")[0] for path in (*case.images, *([case.label] if case.label else [])))
