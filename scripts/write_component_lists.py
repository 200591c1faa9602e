"""Write what follows from the component classes: the simulator's template and the page docs/reference/components.md.

Run it after a class was added, renamed or removed: ``python scripts/write_component_lists.py``. A test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fedseg.jobs.allowed_components import FLARE_CLASSES, bases, component_classes, site_resources

TEMPLATE, PAGE = "workspace_templates/simulator/local/resources.json", "docs/reference/components.md"
_HEAD = """# Components

Every class that a job may name, and no other: this is the `class_allow_list` of kits and of the simulator. The page is
written by `python scripts/write_component_lists.py` from the classes themselves; [the method table](method-table.md)
says what they do, with which arguments, and where they come from.
"""


def component_page() -> str:
    """The page: the whole paths of the classes, by what they are."""
    classes = component_classes()
    groups = {kind: [p for p, found in classes.items() if issubclass(found, base)] for kind, base in bases().items()}
    parts = [f"## {kind.capitalize()}\n\n" + _items(paths) for kind, paths in groups.items()]
    return "\n".join([_HEAD, *parts, "## Of FLARE\n\n" + _items(FLARE_CLASSES)])


def _items(paths: Iterable[str]) -> str:
    return "".join(f"- `{path}`\n" for path in paths)


def written() -> dict[str, str]:
    """Path below the repository's top, and content, of each file that follows from the classes."""
    return {TEMPLATE: json.dumps(site_resources(), indent=2) + "\n", PAGE: component_page()}


if __name__ == "__main__":
    for name, content in written().items():
        (Path(__file__).parents[1] / name).write_text(content, "utf-8")
        print(f"{name} written")
