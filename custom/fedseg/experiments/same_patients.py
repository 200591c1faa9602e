"""Patients at two places: whoever trains at one is no test of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from fedseg.data.datalist import SPLITS, Datalist
from fedseg.errors import DataError


def check_apart(
    where: str, training: Mapping[str, Datalist], tests: Mapping[str, Datalist], digests: Mapping[Path, str]
) -> None:
    """Refuse a test image that trains, or that watches the training of another site, or that is tested twice.

    The same bytes are the same patient, whatever the names; the same name proves nothing, see ``names_in_common``.
    Cases that sites share for training may lie at several of them.

    Args:
        where: the fold in a sentence, with a blank before it; empty for the only one.
        training, tests: of the fold, by site.
        digests: SHA-256 of the content of each file of a case.

    Raises:
        DataError: names the sites and the patients.
    """
    trained = {digest: place for *place, split, digest in _images(training, digests) if split == "training"}
    watched = {digest: place for *place, _, digest in _images(training, digests)}
    tested: dict[str, list[str]] = {}
    for site, patient, _, digest in _images(tests, digests):
        others = [trained.get(digest)]
        others += [found.get(digest) for found in (watched, tested) if found.get(digest, [site])[0] != site]
        for other in filter(None, others):
            raise DataError(
                f"An image of the patient {patient}, who is tested at {site}{where}, is also one of the "
                f"patient {other[1]} of {other[0]}, byte for byte. Drop the patient at one of these places."
            )
        tested[digest] = [site, patient]


def names_in_common(sites: Mapping[str, Datalist], digests: Mapping[Path, str]) -> dict[str, list[str]]:
    """Names of patients who have other images at another place, each with these places.

    Where each site counts its own patients, or a data set has names of cases only, as those of the Decathlon have, that
    is chance; else these may be other examinations of the same patients.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for site, patient, _, digest in _images(sites, digests):
        found.setdefault(patient, {}).setdefault(site, set()).add(digest)
    return {
        patient: list(places)
        for patient, places in found.items()
        if any(one.isdisjoint(other) for one, other in combinations(places.values(), 2))
    }


def _images(sites: Mapping[str, Datalist], digests: Mapping[Path, str]) -> Iterator[tuple[str, str, str, str]]:
    """Site, patient, split and digest of every image."""
    for site, datalist in sites.items():
        for split in SPLITS:
            for case in datalist.split(split):
                yield from ((site, case.patient, split, digests[image]) for image in case.images)
