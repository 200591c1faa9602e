"""A site's update on its way out: arrays, the form they are in, and what each filter did to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np

from fedseg.allowed import is_number
from fedseg.contract.report import SiteReport
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays

DENSE, SPARSE, QUANTISED, ENCRYPTED = "dense", "sparse", "quantised", "encrypted"
FORMS = (DENSE, SPARSE, QUANTISED, ENCRYPTED)
_LONGEST, _LONGEST_TEXT = 64, 1000


class Stage(IntEnum):
    """Where in the chain a filter belongs; a chain goes upwards only.

    Noise that carries a guarantee comes before anything that looks at values to choose among them (``SPARSIFY``),
    since a choice made on unprotected values is a leak of its own; what comes after the noise changes no guarantee.
    """

    LAYERS = 10
    CLIP = 20
    NOISE = 30
    SPARSIFY = 40
    QUANTISE = 50
    ENCRYPT = 60


Step = dict[str, Any]


@dataclass(frozen=True)
class Update:
    """An update as one filter hands it to the next.

    Attributes:
        arrays: by name. In the form ``dense`` floating-point arrays of the network, and further ones under ``shared:``;
            other forms have their own names, which only the filter that made them and its counterpart at the server
            understand.
        report: the scalars that travel with it.
        form: one of ``FORMS``.
        steps: what was done so far, in order: flat objects of text, numbers, booleans and None, with the class of
            the filter under ``filter`` and its stage under ``stage``. They travel with the update, are checked by the
            site's guard, and end in the run's summary.
    """

    arrays: Arrays
    report: SiteReport
    form: str = DENSE
    steps: tuple[Step, ...] = ()

    def after(self, step: Step, arrays: Arrays, form: str | None = None, report: SiteReport | None = None) -> Update:
        """The update after one more step."""
        return replace(
            self,
            arrays=arrays,
            form=self.form if form is None else form,
            steps=(*self.steps, step),
            report=self.report if report is None else report,
        )


def check_dense(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse everything but named, finite floating-point arrays.

    Raises:
        RefusalError: what else there is (reason ``privacy``).
    """
    if not arrays:
        raise RefusalError("privacy", "The update is empty, so nothing left the site.")
    for name, value in arrays.items():
        kind = type(value).__name__
        if not isinstance(name, str):
            raise RefusalError("privacy", f"The update has a name of the type {type(name).__name__}, not text.")
        if not isinstance(value, np.ndarray):
            raise RefusalError("privacy", f"{name} of the update is of the type {kind}, not an array of numpy.")
        if value.dtype not in (np.float32, np.float64):
            raise RefusalError(
                "privacy", f"{name} of the update holds {value.dtype}; only float32 and float64 may leave."
            )
        if not np.isfinite(value).all():
            raise RefusalError("privacy", f"{name} of the update holds values that are not finite.")


def parse_steps(content: Any) -> tuple[Step, ...]:
    """Read a list of steps from a message, trusting nothing.

    Raises:
        RefusalError: it is not a list of flat objects that name their filter (reason ``privacy``).
    """
    steps = () if content is None else content
    if not isinstance(steps, list | tuple) or len(steps) > _LONGEST:
        raise RefusalError("privacy", "The privacy record of the update is not a list of steps.")
    for step in steps:
        if not isinstance(step, Mapping) or not isinstance(step.get("filter"), str) or len(step) > _LONGEST:
            raise RefusalError("privacy", "A step of the privacy record does not name its filter.")
        for key, value in step.items():
            short = isinstance(value, str) and len(value) <= _LONGEST_TEXT
            if not isinstance(key, str) or not (value is None or isinstance(value, bool) or short or is_number(value)):
                raise RefusalError("privacy", "A step of the privacy record holds more than text and finite numbers.")
    return tuple(dict(step) for step in steps)
