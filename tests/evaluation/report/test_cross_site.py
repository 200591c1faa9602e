"""A cross-site evaluation as heat map, tables, page and file."""

import json
import re

import pandas as pd
import pytest
from PIL import Image

from evaluation.synthetic_run import make_summary, write_run
from evaluation.test_cross_site import filled, scores
from fedseg.commands.simulate import _print_matrix
from fedseg.evaluation.cross_site import CROSS_SITE, Cell, CrossSiteMatrix, MatrixModel, cell_of
from fedseg.evaluation.report.cross_site import (
    left_out_table,
    matrix_figure,
    matrix_frame,
    matrix_table,
    short_matrix_table,
    write_matrix_table,
)
from fedseg.evaluation.report.drawing import save, style
from fedseg.evaluation.report.page import write_report
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS


def everything():
    """A matrix with every kind of row and every kind of cell."""
    matrix = filled()
    for site, worse in (("alpha", 0.07), ("beta", 0.2)):
        cells = {
            s: cell_of(scores(level - worse, n))
            for s, level, n in (("alpha", 0.8, 10), ("beta", 0.5, 2), ("gamma", 0.6, 4))
        }
        matrix.add(MatrixModel("without", site, site * 10), cells)
    matrix.add(MatrixModel("personal", "beta", "p" * 64), {"beta": cell_of(scores(0.9, 2)), "alpha": Cell()})
    matrix.add(MatrixModel("file", "atlas", "a" * 64, same_as="last"), matrix.cells["last"])
    return matrix


def test_the_frame_has_models_as_rows_and_the_worst_site_first():
    frame = matrix_frame(filled())
    assert list(frame.columns) == ["beta", "gamma", "alpha", "delta"]
    assert frame.loc["last"].tolist()[:3] == [0.5, 0.6, 0.8]
    assert frame.loc["local-alpha"].isna().all()
    assert matrix_frame(filled(), "hd95", "ET").loc["last", "beta"] == 4.0


def test_the_figure_says_each_number_the_counts_and_why_there_is_none(tmp_path):
    with style():
        figure = matrix_figure(everything())
        path = save(figure, tmp_path / "matrix.png")
    (axes,) = figure.axes
    said = [text.get_text() for text in axes.texts]
    assert {"0.80", "0.50", "withheld", "missing"} <= set(said)
    assert len(said) == 4 * len(everything().models)
    assert next(label.get_text() for label in axes.get_xticklabels()) == "beta\n2 cases"
    assert next(label.get_text() for label in axes.get_yticklabels()) == "Last global model"
    assert Image.open(path).width > 400


def test_without_any_score_there_is_no_figure():
    matrix = CrossSiteMatrix(objective_of(BRATS), ["a"])
    matrix.add(MatrixModel("last"), {"a": Cell(missing="did not answer")})
    assert matrix_figure(matrix) is None
    assert matrix_figure(None) is None
    assert matrix_table(None).rows == ()


def test_the_table_names_what_is_withheld_missing_and_equal():
    table = matrix_table(everything())
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["Last global model"][:4] == ["0.500", "0.600", "0.800", "withheld"]
    assert rows["Last global model"][4:6] == ["0.633", "0.713"]
    assert rows["Last global model"][6] == "beta (0.500)"
    notes = " ".join(table.notes)
    assert "delta: withheld: fewer than 5 cases." in notes
    assert "alpha: own last model: policy: no." in notes
    assert "atlas (file): the very same model as Last global model; it was scored once." in notes
    assert "never trained: gamma." in notes


def test_the_terminal_shows_the_matrix_and_where_the_rest_is(tmp_path, capsys):
    _print_matrix({**make_summary(rounds=2), CROSS_SITE: everything().to_dict()}, tmp_path)
    said = capsys.readouterr().out
    assert "Dice of every model at every site, the worst site first" in said
    header = next(line for line in said.splitlines() if "beta" in line and "model" in line)
    assert re.findall("beta|gamma|alpha|delta", header) == ["beta", "gamma", "alpha", "delta"]
    last = next(line for line in said.splitlines() if "Last global model" in line)
    assert re.findall(r"0\.\d\d|withheld", last) == ["0.50", "0.60", "0.80", "withheld"]
    assert str(tmp_path / "cross_site.csv") in said.replace("\n", "")
    _print_matrix(make_summary(rounds=2), tmp_path)
    assert capsys.readouterr().out == ""


def test_the_terminal_shows_the_worst_of_many_sites(tmp_path, capsys):
    matrix = CrossSiteMatrix(objective_of(BRATS), [f"s{number}" for number in range(12)])
    cells = {f"s{number}": cell_of(scores(0.9 - 0.05 * number, 5)) for number in range(12)}
    matrix.add(MatrixModel("last", digest="a" * 64), cells)
    table = short_matrix_table(matrix, 3)
    assert (list(table.header), table.rows) == (
        ["model", "s11", "s10", "s9"],
        [["Last global model", "0.35", "0.40", "0.45"]],
    )
    _print_matrix({**make_summary(rounds=2), CROSS_SITE: matrix.to_dict()}, tmp_path)
    assert "at the 8 worst of 12 sites" in capsys.readouterr().out


def test_intervals_of_the_sites_stand_beside_their_means():
    matrix = filled()
    part = {**scores(0.8, 10), "intervals": {"dice": {"mean": [0.71, 0.88]}}}
    matrix.cells["last"]["alpha"] = cell_of(part)
    row = next(row for row in matrix_table(matrix).rows if row[0] == "Last global model")
    assert row[3] == "0.800 [0.710, 0.880]"


def test_leave_one_out_compares_the_same_site_with_and_without_it():
    body = {row[0]: row[1:] for row in left_out_table(everything()).rows}
    assert body == {
        "beta": ["2", "0.300", "0.500", "\N{MINUS SIGN}0.200"],
        "alpha": ["10", "0.730", "0.800", "\N{MINUS SIGN}0.070"],
    }
    assert left_out_table(filled()).rows == []


def test_the_file_has_every_number_and_goes_away_with_the_matrix(tmp_path):
    write_matrix_table(everything(), tmp_path)
    table = pd.read_csv(tmp_path / "cross_site.csv")
    found = table[(table.model == "last") & (table.evaluated_at == "alpha") & (table.metric == "dice")]
    assert found.set_index("region").value.to_dict() == {"ET": 0.8, "TC": 0.8, "WT": 0.8, "mean": 0.8}
    assert set(table[table.evaluated_at == "delta"].note) >= {"withheld: fewer than 5 cases"}
    write_matrix_table(None, tmp_path)
    assert not (tmp_path / "cross_site.csv").exists()


def test_the_page_shows_the_matrix(tmp_path):
    out = write_run(tmp_path, {**make_summary(rounds=2), CROSS_SITE: everything().to_dict()})
    page = write_report(out).read_text("utf-8")
    assert "Every model at every site" in page
    assert "Leave one site out" in page
    assert "delta: withheld: fewer than 5 cases." in page
    assert (out / "report" / "figures" / "cross_site_evaluation.png").is_file()
    assert (out / "report" / "cross_site.csv").is_file()
    summary = json.loads((out / "report" / "summary.json").read_text("utf-8"))
    summary.pop(CROSS_SITE)
    assert "Every model at every site" not in write_report(write_run(out, summary)).read_text("utf-8")
    assert not (out / "report" / "figures" / "cross_site_evaluation.png").exists()


@pytest.mark.parametrize("count", [1, 12])
def test_one_site_and_many_sites_are_drawn(count, tmp_path):
    sites = [f"hospital-{number:02d}" for number in range(count)]
    matrix = CrossSiteMatrix(objective_of(BRATS), sites)
    for model in (MatrixModel("last"), *(MatrixModel("local", site) for site in sites)):
        matrix.add(model, {site: cell_of(scores(0.7, 5)) for site in sites})
    with style():
        path = save(matrix_figure(matrix), tmp_path / "matrix.png")
    assert Image.open(path).width < 2000
