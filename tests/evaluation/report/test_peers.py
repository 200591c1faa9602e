"""Who led, and the bytes between sites: hand-made numbers on the page."""

from evaluation.report.test_page import words
from evaluation.synthetic_run import SITES, make_summary, write_run
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.peers import leader_table, pair_bytes, pair_figure


def led(*leaders):
    summary = make_summary(rounds=len(leaders))
    for entry, leader in zip(summary["rounds"], leaders, strict=True):
        others = [site for site in SITES if site != leader]
        traffic = {site: [100 * (1 + number), 1000] for number, site in enumerate(others)}
        entry |= {"swarm": {"leader": leader, "takers": [leader, others[0]], "bytes": traffic}, "asked": list(SITES)}
    return summary


def test_bytes_add_up_over_rounds_by_direction():
    names, total = pair_bytes(led(SITES[0], SITES[0], SITES[1]))
    assert names == list(SITES)
    assert total[1, 0] == 200 + 1000
    assert total[2, 0] == 400
    assert total[0, 1] == 2000 + 100
    assert total[1, 2] == 1000
    assert total[2, 1] == 200


def test_the_page_says_who_led_and_who_lacks_the_model(tmp_path):
    summary = led(SITES[0], SITES[1])
    assert [list(row)[:2] for row in leader_table(summary).rows] == [["1", SITES[0]], ["2", SITES[1]]]
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert "Who led" in text
    assert "the server saw no model" in text
    assert (tmp_path / "report" / "figures" / "pairs.png").is_file()


def test_a_run_over_a_server_says_nothing_of_leaders():
    summary = make_summary(rounds=2)
    assert not leader_table(summary).rows
    assert pair_figure(summary) is None
