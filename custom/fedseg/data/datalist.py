"""Datalists: which files make up the cases of one site, in the form of the Medical Segmentation Decathlon."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedseg.data.supervision import ALL_VOXELS, SUPERVISION, Supervision, parse_supervision
from fedseg.errors import DataError
from fedseg.files.documents import load_data, write_json

SPLITS = ("training", "validation", "test")
FILE_NAME = "datalist.json"
CONVENTION = "label_convention"
DRAWN = "drawn"
LONGEST_NAME = 160


@dataclass(frozen=True)
class Case:
    """One examination: image file(s), label file and the patient they belong to.

    Attributes:
        images: one file per channel in the task's order, or a single file whose last axis holds the channels. Channels
            that were not acquired have none.
        label: the label file; None only where masks are to be predicted.
        patient: identifies the patient; all cases of a patient lie in one split.
        missing: which channels were not acquired, as positions in the task's order, increasing.
        drawn: names of the regions that somebody has drawn in the label; None: all of the task, see ``tasks.drawn``.
        supervision: what is known of its regions; only with ``voxels`` has it a label.
    """

    images: tuple[Path, ...]
    label: Path | None
    patient: str
    missing: tuple[int, ...] = ()
    drawn: tuple[str, ...] | None = None
    supervision: Supervision = ALL_VOXELS

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", same_patient(self.patient))

    @property
    def files(self) -> tuple[Path, ...]:
        """Images, and the label file where there is one."""
        return self.images if self.label is None else (*self.images, self.label)

    @property
    def channels(self) -> tuple[Path | None, ...]:
        """The image files in the task's order, None for each channel that was not acquired."""
        files = iter(self.images)
        count = len(self.images) + len(self.missing)
        return tuple(None if position in self.missing else next(files) for position in range(count))

    @property
    def id(self) -> str:
        """A name for the case, not unique by itself; see ``case_names``.

        What the names of its images have in common (``BraTS2021_00006``), in whole words, if that is four letters or
        more, or the patient's id; else the name of the label file, or of the image where there is none. The only image
        of a case that lacks others is compared with the label file, or with the patient, so that the case is called as
        its like are.
        """
        stems = [_stem(path) for path in self.images]
        if self.missing and len(stems) == 1:
            stems.append(_stem(self.label) if self.label else self.patient)
        common = _common_words(stems) if len(stems) > 1 else ""
        if len(common) >= 4 or (common and common == self.patient):
            return common
        return _stem(self.label) if self.label else stems[0]


def case_of(channels: Sequence[Path | None], label: Path | None) -> Case:
    """A case of nobody, from image files in the task's order, None for each channel that was not acquired."""
    missing = tuple(position for position, path in enumerate(channels) if path is None)
    return Case(tuple(path for path in channels if path is not None), label, "", missing)


def same_patient(patient: str) -> str:
    """The id without what two spellings of it may differ in: Unicode forms and outer spaces."""
    return unicodedata.normalize("NFC", str(patient)).strip()


def case_names(cases: Sequence[Case]) -> list[str]:
    """A name for each case that no other has, fit for file names, also where small and capital letters are the same.

    Where names of different patients are alike (``P1/label.nii.gz``, ``P2/label.nii.gz``), the patient comes first in
    all of them, and a number last where even that is not enough.
    """
    names = [_fit(case.id) for case in cases]
    alike = Counter(name.casefold() for name in names)
    names = [
        name if alike[name.casefold()] == 1 else _fit(f"{case.patient}_{case.id}")
        for name, case in zip(names, cases, strict=True)
    ]
    alike = Counter(name.casefold() for name in names)
    taken, numbers, result = {name for name, count in alike.items() if count == 1}, Counter[str](), []
    for name in names:
        whole, folded = name, name.casefold()
        while alike[folded] > 1 and (whole == name or whole.casefold() in taken):
            numbers[folded] += 1
            whole = f"{name}_{numbers[folded]}"
        taken.add(whole.casefold())
        result.append(whole)
    return result


def _fit(name: str) -> str:
    """The name with what a file's name should not hold replaced, and short enough for every file system."""
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in unicodedata.normalize("NFC", name))
    return plain.encode()[:LONGEST_NAME].decode(errors="ignore") or "case"


def _common_words(names: Sequence[str]) -> str:
    """What the names begin with alike, up to the end of a word that all of them have."""
    common = os.path.commonprefix(list(names))  # noqa: RUF071 (names, not paths)
    if any(name[len(common) : len(common) + 1].isalnum() for name in names):
        common = re.sub(r"[^\W_]*$", "", common)
    return common.rstrip("_-. ")


def _stem(path: Path) -> str:
    """The file's name without the endings of image formats; dots inside the name stay."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mha")


@dataclass(frozen=True)
class Datalist:
    """The cases of one site.

    Attributes:
        training, validation, test: cases; all cases of a patient lie in one of them.
        path: the file that this was read from; relative entries count from its folder.
        task: name of the task where the file states one.
        convention: name of the label convention of all its labels where the file states one.
        notes: everything else that the file says (origin, simulated scanner shift...), kept as it is.
    """

    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    path: Path | None = None
    task: str | None = None
    convention: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of the split called ``training``, ``validation`` or ``test``."""
        return {"training": self.training, "validation": self.validation, "test": self.test}[name]

    def patients(self, name: str) -> int:
        """How many patients the cases of a split belong to."""
        return len({case.patient for case in self.split(name)})

    @property
    def files(self) -> list[Path]:
        """Every file that its cases name, and its own."""
        own = [] if self.path is None else [self.path]
        return own + [file for name in SPLITS for case in self.split(name) for file in case.files]

    @property
    def phantoms(self) -> bool:
        """Whether its images were drawn by a program, also if they were dealt out to sites afterwards."""
        origin = self.notes.get("origin")
        return "phantom" in (origin, origin.get("images") if isinstance(origin, Mapping) else None)

    @property
    def final_split(self) -> str:
        """The split on which the finished model is scored: ``test`` if it has cases, else ``validation``."""
        return "test" if self.test else "validation"

    @property
    def scored_only(self) -> Datalist:
        """The same list with those cases only on which a finished model is scored."""
        validation = () if self.test else self.validation
        return replace(self, training=(), validation=validation)

    @property
    def scorable(self) -> Datalist:
        """The same list without validation and test cases whose supervision is weak: nothing tells what is right."""
        return replace(self, validation=_labelled(self.validation), test=_labelled(self.test))

    @property
    def labelled(self) -> Datalist:
        """The same list with those cases only that are labelled voxel by voxel."""
        return replace(self.scorable, training=_labelled(self.training))

    def with_drawn(self, names: Sequence[str] | None) -> Datalist:
        """The same list, whose cases have these regions drawn where they do not say it themselves."""
        if names is None:
            return self
        training, validation, test = (
            tuple(_drawn_by_default(case, tuple(names)) for case in self.split(name)) for name in SPLITS
        )
        return replace(self, training=training, validation=validation, test=test)


def _drawn_by_default(case: Case, names: tuple[str, ...]) -> Case:
    return replace(case, drawn=names) if case.drawn is None and not case.supervision.weak else case


def _labelled(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(case for case in cases if not case.supervision.weak)


def find_datalist(path: Path) -> Path:
    """The datalist meant by ``path``: the file itself, or ``datalist.json`` in that folder."""
    return path / FILE_NAME if path.is_dir() else path


def read_datalist(path: Path | str) -> Datalist:
    """Read a datalist; whether the images exist and fit the task is for the data check.

    Raises:
        DataError: the file is missing, not JSON, an entry lacks what a case needs, or cases stand under another name.
    """
    path = find_datalist(Path(path))
    missing = "does not exist. Make a datalist with `fedseg import-data` or `partition`."
    content = load_data(path, missing, "is not a datalist in JSON")
    if not isinstance(content, dict) or not any(isinstance(content.get(s), list) for s in SPLITS):
        raise DataError(f"{path} is not a datalist: it has none of the lists {', '.join(SPLITS)}.")
    refuse_other_lists(content, SPLITS, path)
    drawn = parse_drawn(content.pop(DRAWN, None), f"{path}: {DRAWN}")
    if SUPERVISION in content:
        raise DataError(f"{path} has {SUPERVISION!r} for the whole list; say it in each case that it is about.")
    splits = {}
    for split in SPLITS:
        entries = content.pop(split, [])
        if not isinstance(entries, list):
            raise DataError(f"{path}: '{split}' must be a list of cases.")
        splits[split] = tuple(_parse_case(e, path, f"{split}[{i}]") for i, e in enumerate(entries))
    task, convention = content.pop("task", None), content.pop(CONVENTION, None)
    if not isinstance(convention, str | None):
        raise DataError(f"{path}: {CONVENTION!r} must be the name of a label convention of the task.")
    task = task if isinstance(task, str) else None
    datalist = Datalist(**splits, path=path, task=task, convention=convention, notes=content)
    return datalist.with_drawn(drawn)


def write_datalist(datalist: Datalist, path: Path | str) -> Path:
    """Write a datalist (paths relative to its folder where they lie below it, else absolute) and return its path."""
    path = Path(path)
    stated = {"task": datalist.task, CONVENTION: datalist.convention}
    content: dict[str, Any] = {**{name: value for name, value in stated.items() if value}, **datalist.notes}
    several = {case.drawn for split in SPLITS for case in datalist.split(split) if not case.supervision.weak}
    shared = next(iter(several)) if len(several) == 1 else None
    if shared is not None:
        content[DRAWN] = list(shared)
    for split in SPLITS:
        content[split] = [_format_case(case, path.parent, shared) for case in datalist.split(split)]
    return write_json(path, content)


def parse_drawn(value: Any, where: str) -> tuple[str, ...] | None:
    """Names of drawn regions, as a datalist or a profile has them; None where it says nothing.

    Raises:
        DataError: it is no list of different names, or an empty one.
    """
    if value is None:
        return None
    names = value if isinstance(value, list) else []
    if not names or not all(isinstance(n, str) and n for n in names) or len(set(names)) != len(names):
        raise DataError(
            f"{where} is {value!r}, but must be a list of different names of regions, at least one. "
            "Take it out if all regions are drawn; take cases out that have none."
        )
    return tuple(names)


def refuse_other_lists(content: Mapping[str, Any], known: Sequence[str], path: Path) -> None:
    """Refuse cases under a name that nobody reads, such as ``val``: they would be lost without a word.

    Raises:
        DataError: names the list.
    """
    for name, value in content.items():
        if name not in known and _holds_cases(value):
            raise DataError(
                f"{path} has cases under {name!r}, which is not read; the lists of cases are {', '.join(known)}. "
                "Rename it, or take it out."
            )


def _holds_cases(value: Any) -> bool:
    if isinstance(value, dict):
        return "image" in value or any(map(_holds_cases, value.values()))
    return isinstance(value, list) and any(map(_holds_cases, value))


def _parse_case(entry: Any, path: Path, where: str) -> Case:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {where} must be an object with image, label and patient.")
    images = entry.get("image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(i is None or _is_path(i) for i in images) or not any(images):
        raise DataError(
            f"{path}: {where}.image must be a path or a list of paths, with null for a channel that was not acquired."
        )
    label, base = entry.get("label"), path.parent
    if label not in (None, "") and not _is_path(label):
        raise DataError(f"{path}: {where}.label must be a path.")
    patient = _parse_patient(entry.get("patient"), f"{path}: {where}")
    missing = tuple(position for position, image in enumerate(images) if image is None)
    drawn = parse_drawn(entry.get(DRAWN), f"{path}: {where}.{DRAWN}")
    said = parse_supervision(entry, f"{path}: {where}")
    return Case(tuple(base / i for i in images if i), base / label if label else None, patient, missing, drawn, said)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _parse_patient(value: Any, where: str) -> str:
    """The id as text; programs for tables write whole numbers as ``12.0``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not same_patient(str(value)):
        found = "has no 'patient'" if value is None else f"has the patient {value!r}, which is no text or whole number"
        raise DataError(f"{where} {found}. Name the patient, so that splits can be kept apart.")
    return str(value)


def _format_case(case: Case, folder: Path, drawn: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The entry of a case; ``drawn`` is what the whole list says already."""

    def shown(path: Path) -> str:
        absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
        return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)

    images = [None if i is None else shown(i) for i in case.channels]
    entry: dict[str, Any] = {"image": images[0] if len(images) == 1 else images, "patient": case.patient}
    if case.label is not None:
        entry["label"] = shown(case.label)
    if case.drawn not in (None, drawn):
        entry[DRAWN] = list(case.drawn or ())
    return entry | case.supervision.to_entry()
