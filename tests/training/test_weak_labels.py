"""Sites with weak labels in jobs whose method takes none: what is trained, what is scored, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist, write_datalist
from fedseg.data.supervision import Supervision
from fedseg.errors import RefusalError
from fedseg.executors.admission import admit_data
from fedseg.site.profile import SiteProfile
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites


@pytest.fixture(scope="module")
def alpha(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("weak"), {"alpha": (4, 2)}) / "alpha")


def weak(cases, number):
    """The cases, of which the first so many have no labels."""
    return tuple(
        replace(case, label=None, supervision=Supervision("none")) if index < number else case
        for index, case in enumerate(cases)
    )


def profile(folder, datalist):
    write_datalist(datalist, folder / "datalist.json")
    return SiteProfile({"*": folder / "datalist.json"}, folder, folder)


def test_a_plain_job_trains_and_scores_what_is_labelled_voxel_by_voxel(alpha, tmp_path):
    plan = parse_plan(PLAN)
    mixed = replace(alpha, training=weak(alpha.training, 2), validation=weak(alpha.validation, 1))
    few = replace(alpha, training=alpha.training[2:], validation=alpha.validation[1:])
    admitted = admit_data(plan, profile(tmp_path, mixed))
    assert (admitted.training, admitted.validation) == (few.training, few.validation)
    start = {name: value.numpy() for name, value in plan.build_network().state_dict().items()}
    one, other = (SiteTrainer(plan, "alpha", each) for each in (mixed, few))
    assert [one.count(split) for split in ("training", "validation")] == [2, 1]
    results = [trainer.train_round(start, 0, 1) for trainer in (one, other)]
    assert all(np.array_equal(results[0].update[name], value) for name, value in results[1].update.items())
    assert [case.score for case in one.validate(start)] == [case.score for case in other.validate(start)]


@pytest.mark.parametrize(("split", "number"), [("training", 4), ("validation", 2)])
def test_a_plain_job_is_refused_where_nothing_is_labelled_voxel_by_voxel(split, number, alpha, tmp_path):
    mixed = replace(alpha, **{split: weak(alpha.split(split), number)})
    with pytest.raises(RefusalError, match=f"No {split} case of this site is labelled") as caught:
        admit_data(parse_plan(PLAN), profile(tmp_path, mixed))
    assert caught.value.reason == "task"
