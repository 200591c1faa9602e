"""The page of combinations: every cell is what the check of a job with both parts says."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITER = runpy.run_path(str(ROOT / "scripts" / "write_combinations.py"))
TEXT = (ROOT / WRITER["PAGE"]).read_text("utf-8")
REASONS = dict(re.findall(r"^(\d+)\. (.+)$", TEXT, re.MULTILINE))
KINDS, PARTS, PAIRS = WRITER["KINDS"], WRITER["parts"](), WRITER["pairs"]()


def tables():
    """The cells of each table, by its heading, row and column."""
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        heading, *lines = section.splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
        for name, *cells in rows[2:]:
            yield from (((heading, name, column), cell) for column, cell in zip(rows[0][1:], cells, strict=True))


CELLS = dict(tables())


def cell_of(one, other):
    """What the page says of a pair: empty where both work together."""
    rows, columns = sorted((one, other), key=lambda part: KINDS.index(part.kind))
    heading = f"{rows.kind.capitalize()} and {columns.kind}"
    if not any(where[0] == heading for where in CELLS):
        assert f"{heading[0].lower()}{heading[1:]}" in TEXT.partition("Every pair works of: ")[2].partition(".\n")[0]
        return ""
    cell = CELLS[heading, rows.name, columns.name]
    return "" if cell == "+" else REASONS[cell]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{a.name} with {b.name}" for a, b in PAIRS])
def test_a_cell_is_what_the_check_of_a_job_with_both_parts_says(one, other):
    assert WRITER["reason"](one, other) == cell_of(one, other)


def test_the_page_is_complete_and_says_nothing_else():
    named = {part.name for part in PARTS}
    assert {name for _, row, column in CELLS for name in (row, column)} <= named
    used = {cell for cell in CELLS.values() if cell not in ("", "+")}
    assert used == set(REASONS)
    table = (ROOT / "docs" / "reference" / "method-table.md").read_text("utf-8")
    for part in PARTS:
        assert f"`{part.path}`" in table or part.kind == WRITER["STOPPING"], part.name
        assert WRITER["refusal"](part) == "" or part.class_name == "EncryptUpdate"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("CoordinateMedian", "ShareFraction"), "needs every coordinate"),
        (("FedMix", "DPSGD"), "needs the training loss"),
        (("FedNova", "MOON"), "which … withholds"),
        (("FedAvg", "SitesBySize"), "as often as it was drawn"),
        (("Krum", "EncryptedTraining"), "must be a rule that weighs sites by their reports alone"),
        (("Scaffold", "BufferedTraining"), "must be left out"),
        (("AsynchronousTraining", "ShareFraction"), "needs every coordinate of each update"),
        (("AsynchronousTraining", "SparseVector"), "needs every coordinate of each update"),
        (("BufferedTraining", "ShareFraction"), ""),
        (("FedAvg", "RandomSites"), ""),
        (("FedProx", "ShareFraction"), ""),
    ],
)
def test_cells_by_hand(names, said):
    one, other = (next(part for part in PARTS if part.name == name) for name in names)
    cell = cell_of(one, other)
    assert said in cell
    assert bool(cell) is bool(said)
