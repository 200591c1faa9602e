"""A server that keeps the ciphertext of one site, and sends it to the others as the model of a job: nobody reads it.

Executors, filters and guard are those of real sites. All attacks go through them in one process here, and two of them
over mutual TLS in ``tests/e2e/test_local_federation.py``.
"""

import shutil
from contextlib import suppress

import pytest

from cheating_server import Cheating, Reading
from fedseg.errors import FedsegError
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.run_folder import prepare_output
from fedseg.site.forged_sums import FILE
from stolen_ciphertexts import encrypted_job, said_by, without_encryption
from tiny import make_sites

SITES = {"alpha": (2, 1), "beta": (2, 1), "gamma": (2, 1)}
STOLEN = "stolen"


def run(job, folder, name):
    """Run a job to its end, or until it fails; the keys are those of the run ``stolen`` where there is one."""
    prepare_output(folder / name, False)
    for key in (folder / STOLEN / "state").glob("*/*_context.tenseal"):
        place = folder / name / "state" / key.parent.name
        place.mkdir(parents=True)
        shutil.copy(key, place)
    events = []
    with suppress(FedsegError):  # the last event tells how the run ended
        simulate_in_process(job, folder / "data", folder / name, sorted(SITES), events.append)
    return events


def refusals(folder):
    """See ``said_by``, of each site."""
    return {site: said_by(next((folder / "state" / site).glob("*/record.jsonl"))) for site in SITES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An honest run, whose model is left in a file."""
    folder = tmp_path_factory.mktemp("stolen")
    make_sites(folder / "data", SITES)
    events = run(encrypted_job(Cheating, num_rounds=2, file=str(folder / "model")), folder, STOLEN)
    assert events[-1]["event"] == "finished"
    assert (folder / "model").is_file()
    return folder


def test_a_job_whose_updates_are_not_encrypted_gets_nothing_decrypted(folder):
    run(without_encryption(encrypted_job(Reading, num_rounds=1, file=str(folder / "model"))), folder, "plain")
    for sent, texts in refusals(folder / "plain").values():
        assert (sent, len(texts)) == (0, 1)
        assert "lets updates out that are not encrypted" in texts.pop()


@pytest.mark.parametrize(
    ("how", "rounds", "forged", "said"),
    [
        ("lone", 1, True, "not what the sites of that round encrypted"),
        ("own", 1, False, "the updates of 1 site(s)"),
        ("earlier", 2, True, "not what the sites of that round encrypted"),
        ("model", 1, True, "not what the sites of that round encrypted"),
    ],
)
def test_a_job_that_encrypts_gets_nothing_decrypted_but_sums_of_its_own(folder, how, rounds, forged, said):
    given = str(folder / how) if how == "model" else how
    events = run(encrypted_job(Cheating, num_rounds=3, how=given), folder, how + "-cheated")
    assert events[-1]["event"] == "failed"
    for site, (sent, texts) in refusals(folder / f"{how}-cheated").items():
        # Of each honest round a report and a ciphertext.
        assert (sent, len(texts)) == (2 * rounds, 1)
        assert said in texts.pop()
        assert (folder / f"{how}-cheated" / "state" / site / FILE).exists() == forged
