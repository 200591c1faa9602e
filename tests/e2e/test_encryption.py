"""Encrypted runs in FLARE's simulator with real processes, beside the plain run of the same job."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from fedseg.cli import main
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.summary import write_summary
from fedseg.jobs import allowed_components as component_policy
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.privacy.encryption.context import secret_context
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, first_id
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from fedseg.simulation.simulator import simulate
from fedseg.workflows.encrypted.history import EncryptedHistory
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}
JOBS = {"plain": "brats_fedcostwavg", "compact": "hippocampus_he", "exact": "brats_he_fedcostwavg"}
ROUNDS = 3
DROPPED = 2
CONTEXT = "client_context.tenseal"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One seed and data: FedCostWAvg in the clear; FedAvg encrypted compactly, which is the same rule in the first
    round; and FedCostWAvg encrypted exactly, with gamma dropping out between the steps of round 2.

    Gives for each run its folder and its summary.
    """
    folder, found = tmp_path_factory.mktemp("encryption"), {}
    make_sites(folder / "data", SITES)
    with pytest.MonkeyPatch.context() as patch:
        classes = ("encrypted_parts.DropOut", "encrypted_parts.Ear")
        patch.setattr(component_policy, "FLARE_CLASSES", component_policy.FLARE_CLASSES + classes)
        patch.setattr("fedseg.simulation.simulator.PATIENCE", 5.0)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        for name, source in JOBS.items():
            job = read_job(ROOT / "jobs" / source)
            for key in ("task", "network", "training"):
                job.set(key, PLAN[key])
            job.set("workflow.num_rounds", ROUNDS)
            if name == "plain":
                job.set("workflow.keep_updates", True)
            else:
                job.set("workflow.mode", name)
            plan = job.check()
            job.declaration.setdefault("method", plan.method)
            out = folder / name
            job.server.setdefault("components", []).append(
                {"id": "ear", "path": classes[1], "args": {"file": str(folder / f"{name}.ear")}}
            )
            if name == "exact":
                drop = {"path": classes[0], "args": {"site": "gamma", "round_number": DROPPED}}
                job.client["task_result_filters"][0]["filters"].insert(0, drop)
            limits = folder / "data" / "beta" / "policy.json"
            if name == "compact":
                # With a policy the site's guard looks at every message of the run.
                limits.write_text(json.dumps({"require_encryption": True}))
            prepare_output(out, False)
            result = simulate(job, folder / "data", out, list(SITES), lambda event: None)
            limits.unlink(missing_ok=True)
            summary = build_summary(job, result, out / "state")
            (out / "report").mkdir(exist_ok=True)
            write_summary(summary, out / "report")
            found[name] = out, summary
    return found


def arrays_of(path):
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def global_model(runs, number):
    """The plain run's model before round ``number``."""
    return arrays_of(runs["plain"][0] / "updates" / f"round-{number:03d}" / "global.safetensors")


def updates(runs, number):
    folder = runs["plain"][0] / "updates" / f"round-{number:03d}"
    return {site: arrays_of(folder / f"{site}.safetensors") for site in SITES}


def after_first_round(run):
    """The encrypted run's model after one aggregation, as a site opens what the server has stored."""
    out, summary = run
    state = out / "state" / "server" / summary["run_id"]
    start = arrays_of(out / "models" / "last.encrypted")
    initial = {n.removeprefix("initial/"): v for n, v in start.items() if n.startswith("initial/")}
    model = EncryptedModel(first_id(initial), (EncryptedHistory(state).load(0),), initial)
    return model.decrypt(secret_context((out / "state" / "alpha" / CONTEXT).read_bytes()), summary["run_id"])[1]


@pytest.mark.parametrize(("mode", "tolerance"), [("compact", 2e-4), ("exact", 1e-6)])
def test_after_one_aggregation_the_weights_are_those_of_the_plain_run(runs, mode, tolerance):
    largest = max(float(np.abs(v).max()) for update in updates(runs, 0).values() for v in update.values())
    found, expected = after_first_round(runs[mode]), global_model(runs, 1)
    assert runs[mode][1]["rounds"][0]["notes"]["scale"] == largest
    for name, value in expected.items():
        # Both models are rounded to float32: half a unit in the last place of each weight besides.
        rounding = np.spacing(np.abs(value)) if value.dtype.kind == "f" else 0
        assert (np.abs(found[name] - value) <= tolerance * largest + rounding).all(), name


def test_the_rule_gives_the_weights_of_the_plain_run(runs):
    """To the last bit in the first round; later ones follow from losses on models that are equal up to the mode."""
    plain, compact, exact = (runs[name][1]["rounds"] for name in JOBS)
    assert compact[0]["weights"] == exact[0]["weights"] == plain[0]["weights"]
    assert exact[1]["weights"] == pytest.approx(plain[1]["weights"], abs=1e-4)
    assert plain[1]["weights"] != pytest.approx(plain[0]["weights"], abs=1e-4)


def test_a_site_that_drops_out_between_the_steps_is_made_up_for(runs):
    """The run goes on; the sum is divided by the weights that arrived."""
    _, summary = runs["exact"]
    assert [(e["round"], e["site"], e["what"]) for e in summary["events"]] == [
        (DROPPED, "gamma", "error: Dropped out.")
    ]
    last = summary["rounds"][DROPPED]
    assert sorted(last["sites"]) == sorted(last["weights"]) == ["alpha", "beta"]
    assert sum(last["weights"].values()) == pytest.approx(1)
    assert 0 < last["notes"]["weight_of_sum"] < 1
    assert set(summary["final"]["sites"]) == set(SITES), "it is asked again"
    # gamma was not in the last sum, so the model is the one of alpha and beta: far from the plain run's.
    opened, plain = (read_model(runs[name][0] / "models" / "last.safetensors").weights for name in ("exact", "plain"))
    assert max(float(np.abs(opened[n] - plain[n]).max()) for n in plain) > 1e-4


def test_a_site_that_requires_encryption_takes_part_under_its_guard(runs):
    out, summary = runs["compact"]
    assert summary["events"] == []
    assert all(sorted(entry["sites"]) == sorted(SITES) for entry in summary["rounds"])
    assert json.loads((out / "workspace" / "local" / "privacy.json").read_text())


def test_final_and_best_models_report_and_figures_are_there_as_always(runs):
    for name in ("compact", "exact"):
        out, summary = runs[name]
        assert summary["final"]["model"] == "models/last.safetensors"
        assert summary["final"]["mean_dice"] == pytest.approx(runs["plain"][1]["final"]["mean_dice"], abs=0.2)
        assert read_model(out / "models" / "last.safetensors").notes["round"] == ROUNDS - 1
        assert read_model(out / summary["best"]["model"]).notes["round"] == summary["best"]["round"]
        assert summary["privacy"]["security_bits"] >= 128
        assert summary["privacy"]["bytes_per_parameter"] > 5
        assert write_report(out).is_file()


def test_a_site_opens_the_model_with_the_command(runs, tmp_path):
    out, _ = runs["compact"]
    model, context = out / "models" / "last.encrypted", out / "state" / "beta" / CONTEXT
    assert main(["decrypt-model", str(model), "--context", str(context), "--out", str(tmp_path / "m.safetensors")]) == 0
    assert (tmp_path / "m.safetensors").read_bytes() == (out / "models" / "last.safetensors").read_bytes()


@pytest.mark.parametrize("mode", ["compact", "exact"])
def test_the_records_of_server_and_sites_fit_together_and_name_the_opened_models(runs, mode, capsys):
    assert main(["audit-log", "verify", str(runs[mode][0])]) == 0
    said = capsys.readouterr().out
    assert "decrypted model(s) are equal at all sites" in said
    for name in ("last", "best"):
        opened = rf"{name}\.safetensors was opened from .* and the sites decrypted the same"
        assert re.search(opened, said), said


# ------------------------------------------------------- what the server never has


def windows(content, size=24, step=256):
    return [content[start : start + size] for start in range(0, len(content) - size + 1, step)]


def values(arrays):
    """Pieces of all arrays that are long enough to be told from chance."""
    return [w for value in arrays.values() if value.size >= 6 for w in windows(np.ascontiguousarray(value).tobytes())]


def where(run, pieces):
    """Files of a run that hold one of these pieces: the parts of ``OUT``, and what the server heard."""
    files = [*(path for path in run.rglob("*") if path.is_file()), run.with_suffix(".ear")]
    contents = {path: path.read_bytes() for path in files}
    return {
        p.relative_to(run.parent).as_posix() for p, content in contents.items() if any(w in content for w in pieces)
    }


def of_sites(run):
    """Folders that only the sites have, and the models that were opened with a site's key."""
    return tuple(
        f"{run.name}/{part}" for part in (*(f"state/{site}/" for site in SITES), "models/last.s", "models/best.s")
    )


@pytest.mark.parametrize("mode", ["compact", "exact"])
def test_nothing_but_the_sites_folders_holds_the_key(runs, mode):
    out, _ = runs[mode]
    secret = (out / "state" / "alpha" / CONTEXT).read_bytes()
    # The parameters at the start are the server's too.
    found = where(out, windows(secret[256:]))
    assert found == {f"{mode}/state/{site}/{CONTEXT}" for site in SITES}


@pytest.mark.parametrize("mode", ["compact", "exact"])
def test_nothing_but_the_sites_folders_holds_an_update(runs, mode):
    """Updates of the first round, which are those of the plain run, and of the last, which still wait at the sites."""
    out, _ = runs[mode]
    for update in updates(runs, 0).values():
        # Arrays that start at zero are their own update, and stand in the sites' states.
        assert all(path.startswith(of_sites(out)) for path in where(out, values(update)))
    for site in SITES:
        held = out / "state" / site / runs[mode][1]["run_id"] / "held.safetensors"
        assert where(out, values(arrays_of(held))) == {held.relative_to(out.parent).as_posix()}


@pytest.mark.parametrize("mode", ["compact", "exact"])
def test_nothing_but_the_sites_folders_holds_a_trained_model(runs, mode):
    out, _ = runs[mode]
    start = arrays_of(out / "models" / "last.encrypted")
    trained = read_model(out / "models" / "last.safetensors").weights
    changed = {n: v for n, v in trained.items() if not np.array_equal(v, start[f"initial/{n}"])}
    kept = out / "state" / "alpha" / runs[mode][1]["run_id"] / "model.safetensors"
    for arrays in (changed, {n: v for n, v in arrays_of(kept).items() if n in changed}):
        found = where(out, values(arrays))
        assert found
        assert all(path.startswith(of_sites(out)) for path in found), found


def test_the_search_finds_what_is_there(runs):
    """Else none of the above would prove anything: the plain run's server hears every update."""
    out, _ = runs["plain"]
    for site, update in updates(runs, 0).items():
        found = {path for path in where(out, values(update)) if not path.startswith(of_sites(out))}
        assert found >= {"plain.ear", f"plain/updates/round-000/{site}.safetensors"}
    out, _ = runs["compact"]
    history = EncryptedHistory(out / "state" / "server" / runs["compact"][1]["run_id"])
    block = history.load(0).ciphertexts.blocks[0]
    assert any("encrypted-00000" in path for path in where(out, windows(block)))
    assert "compact/simulator.log" in where(out, [b"Job accepted"])
