"""The architecture holds: imports point one way only, and no package knows what lies above it."""

import ast
from pathlib import Path

import fedseg

ROOT = Path(fedseg.__file__).parent
PLAIN = {
    *("tasks", "networks", "data", "training", "privacy", "provenance", "evaluation"),
    *("errors", "version", "console", "memory"),
}
FLARE_SIDE = {"executors", "aggregators", "filters", "workflows"}


def imports_of(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def test_the_plain_side_imports_no_flare():
    offenders = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in ROOT.rglob("*.py")
        if part_of(path) in PLAIN
        for name in imports_of(path)
        if name.split(".")[0] == "nvflare"
    ]
    assert offenders == []


def test_imports_point_downwards_only():
    offenders = []
    for path in ROOT.rglob("*.py"):
        part = part_of(path)
        allowed = PLAIN if part in PLAIN else PLAIN | FLARE_SIDE if part in FLARE_SIDE else None
        for name in imports_of(path):
            target = name.split(".")[1] if name.startswith("fedseg.") else None
            if allowed is not None and target is not None and target not in allowed:
                offenders.append(f"{path.relative_to(ROOT)} imports {name}")
    assert offenders == []


def test_every_package_says_what_lives_there():
    for folder in [p for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"]:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
        assert len(text or "") > 40, folder.name
