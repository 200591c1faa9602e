"""Who trains at one place is no test of another; a name that occurs twice proves nothing."""

from pathlib import Path

import pytest

from fedseg.data.datalist import Case, Datalist
from fedseg.errors import DataError
from fedseg.experiments.cohort import Cohort
from fedseg.experiments.definition import read_definition
from fedseg.experiments.folds import make_folds
from fedseg.experiments.same_patients import names_in_common
from tiny_experiment import write_experiment


def case(site, patient, content=None):
    """A case whose image has the content of its name, or another one."""
    DIGESTS[Path(site, f"{patient}.nii.gz")] = content or f"{site}/{patient}"
    return Case((Path(site, f"{patient}.nii.gz"),), None, patient)


def site(name, **others):
    """Five patients; ``others`` has contents of images by patient."""
    cases = [case(name, f"{name}-{i}", others.get(f"p{i}")) for i in range(5)]
    return Datalist(tuple(cases[:3]), (cases[3],), (cases[4],))


DIGESTS: dict[Path, str] = {}


def fold(tmp_path, sites, external=None, **more):
    definition = read_definition(write_experiment(tmp_path, **more))
    return make_folds(definition, Cohort(sites, external or {}, DIGESTS))


LOSO = {"folds": {"kind": "leave_one_site_out"}}


@pytest.mark.parametrize(
    ("beta", "more", "said"),
    [
        (
            {"p4": "alpha/alpha-0"},
            {},
            "beta-4, who is tested at beta, is also one of the patient alpha-0",
        ),
        (
            {"p4": "alpha/alpha-3"},
            {},
            "beta-4, who is tested at beta, is also one of the patient alpha-3",
        ),
        (
            {"p4": "alpha/alpha-4"},
            {},
            "beta-4, who is tested at beta, is also one of the patient alpha-4",
        ),
        ({"p4": "beta/beta-0"}, {}, "beta-4, who is tested at beta, is also one of the patient beta-0"),
        ({"p0": "alpha/alpha-0"}, LOSO, "alpha-0, who is tested at alpha in the fold loso-alpha, is also one of the"),
    ],
)
def test_an_image_that_trains_and_is_tested_is_refused(tmp_path, beta, more, said):
    with pytest.raises(DataError) as found:
        fold(tmp_path, {"alpha": site("alpha"), "beta": site("beta", **beta)}, **more)
    assert said in str(found.value)
    assert "Drop the patient" in str(found.value)


def test_an_image_of_an_external_set_that_trains_is_refused(tmp_path):
    external = {"gamma": Datalist(test=(case("gamma", "someone", "alpha/alpha-1"),))}
    with pytest.raises(DataError, match="someone, who is tested at gamma"):
        fold(tmp_path, {"alpha": site("alpha")}, external)


def test_what_sites_share_for_training_may_lie_at_several(tmp_path):
    sites = {"alpha": site("alpha"), "beta": site("beta", p0="alpha/alpha-0")}
    assert len(fold(tmp_path, sites)) == 1


def test_names_are_told_where_their_images_differ():
    one = Datalist((case("one", "p1"), case("one", "p2", "shared")), (case("one", "p3"),))
    two = Datalist((case("two", "p1"), case("two", "p2", "shared")), (case("two", "p4"),))
    assert names_in_common({"one": one, "two": two}, DIGESTS) == {"p1": ["one", "two"]}
