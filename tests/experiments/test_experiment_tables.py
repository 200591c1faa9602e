"""The benchmarks of experiments: what a page must have, and must not get, before anything runs."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import experiment_tables  # noqa: E402
import headline  # noqa: E402
import heterogeneity  # noqa: E402
import method_costs  # noqa: E402

MARKS = "<!-- begin of {0} -->\nold\n<!-- end of {0} -->\n"


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Calls a benchmark, and gives what it says when it refuses; whatever would run fails the test."""

    def call(module, page, *more):
        for name in ("run", "row", "phantoms", "data_of"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *given: pytest.fail("something ran"))
        data = [] if module is method_costs else ["--data", str(tmp_path)]
        given = [*data, "--out", str(tmp_path / "out"), "--page", str(page), *more]
        monkeypatch.setattr(sys, "argv", ["benchmark", *given])
        with pytest.raises(SystemExit):
            module.main()
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("module", [headline, heterogeneity])
def test_figures_of_a_small_run_reach_no_page(refused, tmp_path, module):
    page = tmp_path / "page.md"
    page.write_text("".join(MARKS.format(name) for name in module.NAMES))
    assert "--page cannot go with --small" in refused(module, page, "--small")


@pytest.mark.parametrize(
    ("module", "name"),
    [(headline, headline.NAMES[-1]), (heterogeneity, heterogeneity.NAMES[-1]), (method_costs, method_costs.TABLE)],
)
def test_a_page_without_marks_is_refused_before_anything_runs(refused, tmp_path, module, name):
    page, names = tmp_path / "page.md", getattr(module, "NAMES", (name,))
    lines = {each: MARKS.format(each) for each in names}
    for text in ("", lines[name] * 2, f"<!-- end of {name} -->\n<!-- begin of {name} -->\n"):
        page.write_text("".join({**lines, name: text}.values()))
        assert f"needs the marks '<!-- begin of {name} -->'" in refused(module, page)
    assert "needs the marks" in refused(module, tmp_path / "nowhere.md")


def test_tables_go_between_their_marks_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{MARKS.format('one')}Between.\n{MARKS.format('two')}After.\n")
    experiment_tables.write_between_marks(page, {"two": "| new |"})
    expected = "<!-- begin of two -->\n\n| new |\n\n<!-- end of two -->\n"
    assert page.read_text() == f"Before.\n{MARKS.format('one')}Between.\n{expected}After.\n"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/evidence.md", headline.NAMES),
        ("docs/explanation/heterogeneity.md", heterogeneity.NAMES),
        ("docs/reference/method-table.md", [method_costs.TABLE]),
    ],
)
def test_the_pages_that_the_benchmarks_name_have_their_marks(page, names):
    assert experiment_tables.missing_marks(ROOT / page, names) is None
