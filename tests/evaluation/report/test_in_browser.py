"""Pages as a browser shows them: without errors, without the network, on a phone, and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, chromium
from evaluation.synthetic_experiment import write_experiment
from evaluation.synthetic_run import make_summary, write_run
from fedseg.evaluation.report.experiment.page import write_experiment_report
from fedseg.evaluation.report.page import write_report

LARGEST = 5 * 2**20
PHONE = 390
# All text that is seen, and how small it is.
SMALLEST_TYPE = """Math.min(...[...document.querySelectorAll('p, td, th, li, figcaption, dt, dd')]
    .filter(each => each.textContent.trim()).map(each => parseFloat(getComputedStyle(each).fontSize)))"""
BROKEN = "[...document.images].filter(each => !each.complete || !each.naturalWidth).length"
UNNAMED = "[...document.images].filter(each => !each.alt).length"
DEAD_LINKS = """[...document.querySelectorAll('a[href^="#"]')]
    .filter(each => !document.getElementById(each.getAttribute('href').slice(1))).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Each page and how many figures it has."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_report(write_run(folder / "run", make_summary(4), pictures=True))
    experiment = write_experiment_report(write_experiment(folder / "experiment")).page
    site = experiment.parent / "sites" / "west.html"
    drawn = len(list((experiment.parent / "figures").glob("*.png")))
    return {
        "run": (run, len(list((run.parent / "figures").glob("*.png")))),
        "experiment": (experiment, drawn),
        "site": (site, drawn),
    }


@pytest.mark.parametrize("name", ["run", "experiment", "site"])
def test_a_page_in_a_browser(name: str, browser: Browser, pages: dict[str, tuple[Path, int]]) -> None:
    page, figures = pages[name]
    assert page.stat().st_size < LARGEST
    seen = browser.open(page)
    assert seen.errors == []
    assert {url.split(":")[0] for url in seen.requests} <= {"file", "data"}
    assert [url for url in seen.requests if url.startswith("file:")] == [page.resolve().as_uri()]
    assert browser.evaluate("document.images.length") == figures
    assert [browser.evaluate(script) for script in (BROKEN, UNNAMED, DEAD_LINKS)] == [0, 0, 0]
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
    browser.resize(PHONE, 844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert browser.evaluate(SMALLEST_TYPE) >= 11
    printed = browser.print_pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 2


def test_the_checks_see_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """A page with an error, a request, a picture that is not there and a line that is too long."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width"><div style="width: 900px">wide</div>'
        '<img src="http://127.0.0.1:9/nothing.png"><a href="#nowhere">x</a><p style="font-size: 6px">small</p>'
        "<script>console.error('wrong')</script>",
        "utf-8",
    )
    seen = browser.open(page, PHONE, 844)
    assert any("wrong" in error for error in seen.errors)
    assert "http://127.0.0.1:9/nothing.png" in seen.requests
    assert [browser.evaluate(script) for script in (BROKEN, UNNAMED, DEAD_LINKS)] == [1, 1, 1]
    assert browser.evaluate("document.documentElement.scrollWidth") > PHONE
    assert browser.evaluate(SMALLEST_TYPE) == 6
