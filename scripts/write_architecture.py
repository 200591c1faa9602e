"""Write the picture in docs/explanation/architecture.md: floors of tests/test_layers.py, packages in their own words.

Run it after a package came, went, moved to another floor or says something else of itself:
``python scripts/write_architecture.py``. A test compares.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "explanation" / "architecture.md"
CODE = TOP / "custom" / "fedseg"
_BEGIN, _END = "```text\n", "```\n"
_WIDTH, _NAME = 118, 20


def sentence(folder: Path) -> str:
    """The first sentence of what a package says of itself."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.replace("``", "").split()))[0]


def picture() -> str:
    """One floor below the other, and on each its packages with their own packages."""
    sys.path.insert(0, str(TOP / "tests"))
    from test_layers import FLARE_SIDE, LAYERS

    lines = []
    for floor in reversed(LAYERS):
        lines.append("-" * _WIDTH)
        for package in sorted(floor):
            lines += _line(CODE / package, package + ("*" if package in FLARE_SIDE else ""))
            inner = sorted((CODE / package).rglob("__init__.py"))
            lines += [
                text
                for folder in (path.parent for path in inner if path.parent != CODE / package)
                for text in _line(folder, f"  {folder.relative_to(CODE / package)}")
            ]
    return "\n".join([*lines, "-" * _WIDTH, ""])


def _line(folder: Path, name: str) -> list[str]:
    indent = " " * (_NAME + 2)
    return textwrap.wrap(sentence(folder), _WIDTH, initial_indent=f"{name:{_NAME}}  ", subsequent_indent=indent)


def page() -> str:
    """The page as it is, with the picture as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(_BEGIN)
    return before + _BEGIN + picture() + _END + rest.partition(_END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"{PAGE} written")
