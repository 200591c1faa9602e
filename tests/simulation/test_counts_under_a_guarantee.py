"""What a site tells of its numbers in a job with a guarantee: the same, whatever a single patient's data are."""

from dataclasses import replace

import pytest

from fedseg.data.datalist import read_datalist
from fedseg.simulation.in_process import InProcessFederation
from simulation.test_ledger_of_jobs import PRIVATE, job
from tiny import make_sites, write_case

TIMES = {"seconds", "seconds_training"}


def told(datalist, folder, *filters):
    """What the site said when it accepted the job, and what it reported of the round."""
    federation = InProcessFederation(job(*filters), {"alpha": datalist}, state=folder)
    federation.run()
    federation.local.close()
    assert federation.events == []
    return dict(federation.training.state.participants.answers["alpha"].cases), federation.rounds[0]["sites"]["alpha"]


@pytest.mark.parametrize("filters", [[PRIVATE], []], ids=["private", "plain"])
def test_a_patient_with_more_cases_in_the_place_of_one_changes_no_number(tmp_path, filters):
    data = read_datalist(make_sites(tmp_path / "data", {"alpha": (4, 2)}) / "alpha")
    first, watched = data.training[0].patient, data.validation[0].patient
    more = [replace(write_case(tmp_path / "more", f"m{i}", 900 + i), patient=first) for i in range(3)]
    seen = replace(write_case(tmp_path / "more", "v", 950), patient=watched)
    larger = replace(data, training=(*data.training, *more), validation=(*data.validation, seen))
    (cases, report), (cases_of_more, report_of_more) = (
        told(each, tmp_path / name, *filters) for name, each in (("one", data), ("more", larger))
    )
    if not filters:
        assert (cases["training"], cases_of_more["training"]) == (4, 7)
        assert (report["num_steps"], report_of_more["num_steps"]) == (2, 4)
        return
    assert cases == cases_of_more
    assert {key: value for key, value in report.items() if value != report_of_more[key]} == {}
    assert (report["num_samples"], report["num_steps"], report["val_cases"]) == (4, 2, 2)
    assert [report[name] for name in sorted(TIMES)] == [0.0, 0.0], "nor does a duration follow the size of an image"
