"""The page about the architecture against the code: the picture of packages, and the modules that it names."""

import re
import runpy
from pathlib import Path

import fedseg
from fedseg.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"


def test_the_picture_is_what_the_packages_say():
    expected = runpy.run_path(str(ROOT / "scripts" / "write_architecture.py"))["page"]()
    assert PAGE.read_text("utf-8") == expected, "python scripts/write_architecture.py"


def test_every_module_that_the_page_names_exists():
    named = re.findall(r"`fedseg/(\S+?\.py)`", PAGE.read_text("utf-8"))
    assert len(named) > 40
    assert [name for name in named if not (Path(fedseg.__file__).parent / name).is_file()] == []


def test_every_command_has_a_module_and_every_package_a_sentence():
    folder = Path(fedseg.__file__).parent
    assert [name for name in COMMANDS if not (folder / "commands" / f"{name.replace('-', '_')}.py").is_file()] == []
    packages = {path.parent for path in folder.rglob("*.py")}
    assert [str(path) for path in packages if not (path / "__init__.py").is_file()] == []
