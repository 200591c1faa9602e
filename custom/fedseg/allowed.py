"""Checked values: each function returns the setting that it is given, or refuses it with its name and what is allowed.

>>> number("trim", 0.1, least=0, below=0.5)
0.1
>>> optional(whole, "patience", 0, least=1)
Traceback (most recent call last):
...
fedseg.errors.ConfigurationError: patience is 0, but must be a whole number of at least 1, or null.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, fields
from functools import partial
from typing import Any, TypeGuard, TypeVar

from fedseg.errors import ConfigurationError

T = TypeVar("T")
_MOST_COUNTED = 2**53


def is_number(value: object, infinite: bool = False) -> TypeGuard[float]:
    """Whether this is a number that a float can hold, which true, false and NaN are not.

    Args:
        value: anything.
        infinite: whether infinity is one.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max or (infinite and value in (math.inf, -math.inf))


def is_count(value: object) -> TypeGuard[int]:
    """Whether this is a whole number from 0 to 2^53, up to which floats tell all of them; true and false are none."""
    return type(value) is int and 0 <= value <= _MOST_COUNTED


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    allowed: str = "",
) -> float:
    """A number between bounds.

    Args:
        name: the setting as the user wrote it.
        value: what was found.
        least, above: the lower bound, which is allowed or is not.
        most, below: the upper bound, which is allowed or is not.
        infinite: whether infinity is allowed.
        allowed: what the message says instead of the bounds.

    Raises:
        ConfigurationError: it is no number, or outside the bounds.
    """
    inside = is_number(value, infinite) and (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside:
        raise ConfigurationError(name, value, allowed or _phrase(least, above, most, below))
    return value


def _phrase(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """Bounds as people say them: ``a number from 0 up``, ``a number from 0 to below 1``, ``a number above 0``, ..."""
    if above is not None:
        upper = f", at most {most}" if most is not None else "" if below is None else f" and below {below}"
        return f"a number above {above}{upper}"
    if least is None:
        return "a number"
    upper = f"to {most}" if most is not None else "up" if below is None else f"to below {below}"
    return f"a number from {least} {upper}"


def whole(name: str, value: Any, *, least: int = 1, most: int | None = None, allowed: str = "") -> int:
    """A whole number between bounds, both of which are allowed; arguments as of ``number``.

    Raises:
        ConfigurationError: it is no whole number, or outside the bounds.
    """
    if type(value) is not int or value < least or (most is not None and value > most):
        upward = f"from {least} up" if least == 0 else f"of at least {least}"
        bounds = upward if most is None else f"from {least} to {most}"
        raise ConfigurationError(name, value, allowed or f"a whole number {bounds}")
    return value


def one_of(name: str, value: Any, choices: Collection[T]) -> T:
    """One of the choices, which are texts or numbers.

    Raises:
        ConfigurationError: it is another value, or equal to a choice of another type.
    """
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise ConfigurationError(name, value, f"one of {list(choices)}")


def switch(name: str, value: Any) -> bool:
    """True or false.

    Raises:
        ConfigurationError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(name, value, "true or false")
    return value


def text(name: str, value: Any) -> str:
    """A text that is not empty.

    Raises:
        ConfigurationError: it is anything else.
    """
    if not isinstance(value, str) or not value:
        raise ConfigurationError(name, value, "a text" if value != "" else "a text that is not empty")
    return value


def texts(name: str, value: Any, *, allowed: str = "a list of names, at least one") -> tuple[str, ...]:
    """A list of texts, at least one and none of them empty.

    Raises:
        ConfigurationError: it is anything else; a single text is, too.
    """
    if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) and text for text in value):
        raise ConfigurationError(name, value, allowed)
    return tuple(value)


def optional(check: Callable[..., T], name: str, value: Any, **bounds: Any) -> T | None:
    """None, or what the check allows.

    Raises:
        ConfigurationError: as of the check.
    """
    if value is None:
        return None
    try:
        return check(name, value, **bounds)
    except ConfigurationError as error:
        raise ConfigurationError(error.name, error.value, f"{error.allowed}, or null", error.remedy) from None


def setting(default: Any, check: Callable[..., Any], **bounds: Any) -> Any:
    """A field of a dataclass of settings, declared with what it may be; ``settings`` checks it.

    Args:
        default: its value where a job does not name it; with None a job may also write null.
        check: a function of this module, or another one that takes a name and a value.
        bounds: of the check.
    """
    complete = partial(optional, check, **bounds) if default is None else partial(check, **bounds)
    return field(default=default, metadata={"check": complete})


def settings(kind: type[T], declaration: Any, where: str) -> T:
    """The settings that a job declares, with all defaults filled in.

    Args:
        kind: a dataclass whose fields are made by ``setting``.
        declaration: the object as it stands in the job.
        where: how the user calls it, for messages.

    Raises:
        ConfigurationError: a name is unknown or a value is not allowed.
    """
    if not isinstance(declaration, Mapping):
        raise ConfigurationError(where, declaration, "an object of settings")
    checks = {f.name: f.metadata["check"] for f in fields(kind)}  # type: ignore[arg-type]
    known_names(where, declaration, checks, "the settings are")
    return kind(**{name: checks[name](f"{where}.{name}", value) for name, value in declaration.items()})


def known_names(where: str, declaration: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuse a name that is not known.

    Args:
        where: how the user calls the object; empty for a file's top.
        declaration: the object.
        known: all names that it may have.
        what: how the message begins to list them, e.g. ``the settings are``.

    Raises:
        ConfigurationError: it has another name.
    """
    for name, value in declaration.items():
        if name not in known:
            raise ConfigurationError(
                f"{where}.{name}" if where else str(name), value, f"absent: {what} {sorted(known)}"
            )
