"""YAML as people write settings in it: plain values only, every name once, and numbers and words as JSON has them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.documents import parse_json

_REFUSED = yaml.TagToken, yaml.AliasToken, yaml.AnchorToken


class _Loader(yaml.SafeLoader):
    """Plain values with the meaning of YAML 1.2.

    YAML 1.1 takes ``no`` and ``on`` for truth values, ``1e-3`` for a text, ``1:30`` for 90 and ``2024-01-01`` for a
    date. None of that is meant in settings.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False", "tfTF"),
    ("null", r"null|~|Null|", "nN~"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    """Every name is a text and stands once; of two equal ones YAML would take the last without a word."""
    names = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is no text; put it in quotes")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"the name {twice[0]!r} stands twice in one object")
    values = (loader.construct_object(value, deep=True) for _, value in node.value)
    return dict(zip(names, values, strict=True))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _hint(text: str, last: int) -> str:
    """The usual slip in the first lines, down to the line ``last`` from 0; empty where there is none.

    YAML itself stumbles over the line behind a colon without a space, and says nothing of tabs.
    """
    for number, line in enumerate(text.splitlines()[: last + 1], start=1):
        if re.match(r" *\t", line):
            return f"line {number} begins with a tab; use spaces"
        if re.match(r" *(- +)?[A-Za-z_][\w.-]*:(?!//)[^\s:]", line):
            return f"a space is missing after the colon in line {number}"
    return ""


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file of plain values: texts, numbers, truth values, lists and objects.

    Args:
        path: of the file.
        what: what the file is, as messages name it, e.g. ``the definition of an experiment``.

    Raises:
        UsageError: it does not exist, or is a folder.
        ConfigurationError: it cannot be read, or is not YAML of plain values; a tag, an alias and a name
            that stands twice are refused.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {state}. Name the file with {what}.")
    try:
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".json":
            return parse_json(text)
        if any(isinstance(token, _REFUSED) for token in yaml.scan(text, Loader=_Loader)):
            raise ValueError("tags (!), anchors (&) and aliases (*) are not read; write the plain value")
        content = yaml.load(text, Loader=_Loader)  # plain values only, see _Loader
        if isinstance(content, str) and (hint := _hint(text, text.count("\n"))):
            raise ValueError(hint)
        return content
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        allowed = f"{what}, a readable YAML file (line {line} is not in UTF-8; save it so)"
        raise ConfigurationError(path.name, str(path), allowed) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        hint = "" if mark is None else _hint(text, mark.line)
        reason = hint or " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(path.name, str(path), f"{what}, a readable YAML file ({reason})") from None
