"""``fedseg probe-split`` and the probe at the end of runs: refusals, what is written, what the report says of it."""

import html
import json
import re
from contextlib import nullcontext

import pytest

from fedseg.attacks.probe import PHANTOMS, probe_after_run
from fedseg.cli import main
from fedseg.commands import fetch
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import FILE_NAME
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.deployment.coordination import fetched_run
from fedseg.evaluation.report.compare import own_models_note, write_comparison
from fedseg.evaluation.report.inversion import inversion_table, inversion_verdict, inversion_words
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.summary import read_summary, write_summary
from fedseg.models.model_file import write_model
from fedseg.networks.split.stages import cut_names
from fedseg.networks.weights import get_weights
from tiny import PLAN, make_sites

SITES = {"alpha": (2, 1), "beta": (2, 1)}
BRATS = {"name": "brats", "patch_size": [16, 16, 16]}
LIKENESS = {"psnr": 20.0, "correlation": 0.5}


def plan_of(**changes):
    return parse_plan({**PLAN, "split": {"message": "float16", **changes.pop("split", {})}, **changes})


def make_run(folder, plan, separate=()):
    """The folder of a run whose models are those that it began with: one, or one for each of some sites."""
    names = [f"last.{site}" for site in separate] or ["last"]
    network = plan.build_network()
    for name in names:
        write_model(folder / "models" / f"{name}.safetensors", plan, get_weights(network), 0)
    final = {"model": None if separate else "models/last.safetensors"}
    if separate:
        final["models"] = {site: f"models/last.{site}.safetensors" for site in separate}
    parts = {"network": plan.network.to_dict(), "training": plan.training.to_dict(), "seed": plan.seed}
    task = {"task": plan.task.name, "task_declaration": plan.task.to_dict()}
    split = {} if plan.split is None else {"split": plan.split.to_dict()}
    summary = {"schema": "fedseg-summary-1", "job": "tiny", **task, **parts, **split, "sites": list(SITES)}
    (folder / "report").mkdir()
    write_summary({**summary, "rounds": [], "final": final}, folder / "report")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("sites"), SITES)


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", plan_of())


def probe(folder, *arguments):
    return main(["probe-split", str(folder), *map(str, arguments)])


def words(page):
    body = re.sub(r"<style>.*?</style>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


# ---------------------------------------------------------------- what it does


def test_the_command_completes_summary_and_report(folder, data, capsys):
    assert probe(folder, "--data", data, "--steps", 2) == 0
    found = read_summary(folder)["inversion"]
    assert json.loads((folder / "report" / "inversion.json").read_text("utf-8")) == found
    assert found["attacker"] == {"images": "sites", "sites": ["alpha"]}
    assert found["victim"] == {"images": "site", "site": "beta"}
    assert (found["cut"], found["message"], found["model"]) == ("encoder1", "float16", "models/last.safetensors")
    assert (found["public_patches"], found["victim_patches"]) == (4, 4), "two of each case"
    assert [cut["cut"] for cut in found["cuts"]] == list(cut_names(plan_of().network))
    assert all(cut["steps"] == 2 for cut in found["cuts"])
    # 4 x 8^3 numbers of two bytes, and the scale.
    assert found["cuts"][0]["bytes"] == 4 * 8**3 * 2 + 4, "a scale of eight bytes for the two patches of a batch"
    shown, text = capsys.readouterr().out, words(folder / "report" / "report.html")
    for entry in [*found["cuts"], *found["references"].values()]:
        assert f"{entry['ssim']:.3f}".replace("-", "\N{MINUS SIGN}") in text
        assert f"{entry['ssim']:.3f}".replace("-", "\N{MINUS SIGN}") in shown
    assert "features of encoder1 (this job)" in text
    assert "This is a lower bound: what was reached here can be reached" in text
    assert (folder / "report" / "inversion.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "report" / "report.html").read_text("utf-8").count("data:image/png;base64,") == 1


def test_only_the_named_cuts_and_the_seed(folder, data):
    assert probe(folder, "--data", data, "--steps", 2, "--cut", "bottom", "--seed", 7) == 0
    found = read_summary(folder)["inversion"]
    assert [cut["cut"] for cut in found["cuts"]] == ["bottom"]
    assert found["seed"] == 7
    assert "features of bottom" in inversion_verdict(read_summary(folder))


def test_a_weaker_probe_does_not_replace_a_stronger_one(folder, data, capsys):
    assert probe(folder, "--data", data, "--steps", 3, "--cut", "encoder1") == 0
    strong, picture = read_summary(folder)["inversion"], folder / "report" / "inversion.png"
    drawn = picture.read_bytes()
    # As if it had been found by a far better decoder.
    strong["cuts"][0]["ssim"] = 0.99
    write_summary({**read_summary(folder), "inversion": strong}, folder / "report")
    capsys.readouterr()
    assert probe(folder, "--data", data, "--steps", 1, "--cut", "bottom", "--cut", "encoder1") == 0
    found = read_summary(folder)["inversion"]
    assert [(cut["cut"], cut["steps"]) for cut in found["cuts"]] == [("encoder1", 3), ("bottom", 1)]
    assert found["cuts"][0] == strong["cuts"][0]
    assert (found["pictured"], picture.read_bytes()) == (["encoder1"], drawn), "that of the job's own cut stays"
    said = " ".join(capsys.readouterr().out.split())
    assert "From the features of encoder1 an image was reconstructed by a decoder that was trained for 3 steps" in said


def test_a_probe_of_another_model_does_not_join_an_earlier_one(folder, data):
    assert probe(folder, "--data", data, "--steps", 1, "--cut", "encoder1") == 0
    plan = plan_of(seed=PLAN["seed"] + 1)
    network = plan.build_network()
    write_model(folder / "models" / "last.safetensors", plan, get_weights(network), 0)
    assert probe(folder, "--data", data, "--steps", 1, "--cut", "bottom") == 0
    assert [cut["cut"] for cut in read_summary(folder)["inversion"]["cuts"]] == ["bottom"]


def test_the_victim_is_probed_with_the_part_that_is_its_own(tmp_path, data):
    """``beta`` has not sent its part, so the last site with a model is ``alpha``, which is then alone."""
    both = make_run(tmp_path / "both", plan_of(), ("alpha", "beta"))
    assert probe(both, "--data", data, "--steps", 1, "--cut", "encoder1") == 0
    assert read_summary(both)["inversion"]["model"] == "models/last.beta.safetensors"
    one = make_run(tmp_path / "one", plan_of(), ("alpha",))
    assert probe(one, "--data", data, "--steps", 1) == 2


def test_one_site_is_attacked_with_phantoms_and_no_site_too(tmp_path, monkeypatch):
    made, asked = tmp_path / "made", []

    def phantoms(task, sites, cases, folder, seed):
        asked.append((task, sites, cases, seed))
        return [made / f"site-{number}" / FILE_NAME for number in (1, 2)]

    make_phantoms("brats", 2, 3, made, heterogeneity=0.0)
    monkeypatch.setattr("fedseg.attacks.probe.make_phantoms", phantoms)
    folder = make_run(tmp_path / "run", plan_of(task=BRATS))
    assert probe(folder, "--phantoms", 3, "--steps", 1, "--cut", "encoder1") == 0
    found = read_summary(folder)["inversion"]
    assert found["attacker"] == {"images": "phantoms", "sites": []}
    assert found["victim"] == {"images": "phantoms", "site": None}
    assert (found["public_patches"], found["victim_patches"]) == (6, 6)
    assert "simulated images" in words(folder / "report" / "report.html")
    (tmp_path / "data").mkdir()
    (made / "site-2").rename(tmp_path / "data" / "real")
    (made / "site-2").symlink_to(made / "site-1")
    assert probe(folder, "--data", tmp_path / "data", "--steps", 1, "--cut", "encoder1") == 0
    found = read_summary(folder)["inversion"]
    assert found["attacker"]["images"] == "phantoms"
    assert found["victim"] == {"images": "site", "site": "real"}
    assert found["victim_patches"] == 4, "its two training cases, and not the one for validation"
    assert [(task, sites, cases) for task, sites, cases, _ in asked] == [("brats", 2, 3), ("brats", 2, PHANTOMS)]
    assert all(seed != PLAN["seed"] for *_, seed in asked), "the run may have been trained on phantoms of its own seed"


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--steps", 0], 2, "--steps 0: the number of steps must be a whole number of at least 1."),
        (["--seed", -1], 2, "--seed -1: the seed must be a whole number"),
        (["--phantoms", 0], 2, "--phantoms 0: the number of cases must be from"),
        (["--cut", "stem"], 2, "--cut stem: residual_unet can be cut behind encoder1, encoder2, bottom, decoder2."),
        (["--data", "nowhere"], 2, "--data nowhere is not a folder"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(folder, data, arguments, code, sentence, capsys):
    given = arguments if "--data" in arguments else ["--data", data, *arguments]
    assert probe(folder, *given) == code
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert "inversion" not in read_summary(folder)


def test_without_images_and_phantoms_it_says_what_is_needed(folder, data, tmp_path, capsys):
    assert probe(folder) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no images were named, and tiny has no phantoms" in said
    assert f"fedseg probe-split {folder} --data DIR" in said
    alone = make_sites(tmp_path / "alone", {"alpha": (2, 1)})
    assert probe(folder, "--data", alone) == 2
    assert "one site with training cases is not enough" in " ".join(capsys.readouterr().err.split())


def test_phantoms_of_a_task_without_them_are_to_be_left_out(folder, data, capsys):
    assert probe(folder, "--data", data, "--phantoms", 3) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"--phantoms 3: tiny has no phantoms. Leave it out: {data} has the images of 2 sites" in said


def test_what_is_no_run_of_split_training_is_refused(tmp_path, data, capsys):
    assert probe(tmp_path, "--data", data) == 1
    assert "is not the folder of a run" in capsys.readouterr().err
    ordinary = make_run(tmp_path / "ordinary", parse_plan(PLAN))
    assert probe(ordinary, "--data", data) == 2
    assert "its network was not cut" in " ".join(capsys.readouterr().err.split())


def test_a_missing_model_is_named(folder, data, capsys):
    (folder / "models" / "last.safetensors").unlink()
    assert probe(folder, "--data", data) == 1
    assert "last.safetensors does not exist" in " ".join(capsys.readouterr().err.split())
    summary = read_summary(folder)
    write_summary({**summary, "final": {"model": None, "models": {}}}, folder / "report")
    assert probe(folder, "--data", data) == 1
    assert "has no last model" in " ".join(capsys.readouterr().err.split())


def test_images_of_another_task_and_sites_without_cases_are_refused(folder, tmp_path, capsys):
    other = make_sites(tmp_path / "other", SITES)
    for site in SITES:
        path = other / site / FILE_NAME
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**content, "task": "brats"}), "utf-8")
    assert probe(folder, "--data", other) == 1
    assert "holds images for brats, and the run is of tiny" in " ".join(capsys.readouterr().err.split())
    empty = make_sites(tmp_path / "empty", SITES)
    for site in SITES:
        path = empty / site / FILE_NAME
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**content, "training": []}), "utf-8")
    assert probe(folder, "--data", empty) == 1
    assert "No site in" in capsys.readouterr().err


# ------------------------------------------------------------- the end of runs


class Told(list):
    """Keeps what it is told, and which of it is a warning."""

    def __call__(self, text, warning):
        self.append((text, warning))


def test_a_run_whose_images_do_not_allow_a_probe_stays_as_it_is(folder, tmp_path):
    alone = make_sites(tmp_path / "alone", {"alpha": (2, 1)})
    before, told = read_summary(folder), Told()
    assert probe_after_run(folder, alone, before, True, told) == before == read_summary(folder)
    assert [warning for _, warning in told] == [False, True]
    assert told[-1][0].startswith("not probed: ")


def test_a_probe_that_breaks_leaves_the_run_as_it_is(folder, data, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedseg.attacks.probe.draw_reconstructions", full)
    before, told = read_summary(folder), Told()
    assert probe_after_run(folder, data, before, True, told) is before
    assert told[-1][1]
    assert told[-1][0].startswith("not probed: OSError")
    assert read_summary(folder) == before


def test_what_an_earlier_probe_left_goes_where_none_is_wanted(folder):
    left = [folder / "report" / name for name in ("inversion.json", "inversion.png")]
    for path in left:
        path.write_text("of the run before it was taken up again")
    probe_after_run(folder, None, read_summary(folder), False, Told())
    assert not any(path.exists() for path in left)


def test_a_run_of_ordinary_training_is_not_probed(tmp_path):
    ordinary = make_run(tmp_path / "ordinary", parse_plan(PLAN))
    summary, told = read_summary(ordinary), Told()
    assert probe_after_run(ordinary, None, summary, True, told) is summary
    assert told == []


@pytest.mark.parametrize(("arguments", "said"), [([], True), (["--no-probe"], False)])
def test_fetch_without_phantoms_says_that_nothing_was_probed(tmp_path, monkeypatch, capsys, arguments, said):
    def fetched(coordinator, job_id, out):
        write_report(make_run(out, plan_of()))
        return read_summary(out)

    monkeypatch.setattr(fetch, "connect", lambda kit: nullcontext())
    monkeypatch.setattr(fetched_run, "fetch", fetched)
    out = tmp_path / "fetched"
    assert main(["fetch", "7", "--kit", str(tmp_path), "--out", str(out), *arguments]) == 0
    assert ("not probed" in capsys.readouterr().err) == said
    text = words(out / "report" / "report.html")
    assert "This was not measured. fedseg probe-split RUN --data DIR does it" in text


# ----------------------------------------------------------------- the report


def summary_with(ssim, **changes):
    """References are .4 (guess), .6 (a quarter) and .8 (half)."""
    references = {
        name: {"ssim": value, **LIKENESS} for name, value in (("guess", 0.4), ("quarter", 0.6), ("half", 0.8))
    }
    cuts = [{"cut": "encoder1", "ssim": ssim, **LIKENESS, "steps": 400, "bytes": 2000}]
    parties = {"attacker": {"images": "sites", "sites": ["a", "b"]}, "victim": {"images": "site", "site": "c"}}
    found = {"cut": "encoder1", "message": "float16", "feature_noise": 0.0, "public_patches": 24, "victim_patches": 6}
    return {"inversion": {**found, **parties, "references": references, "cuts": cuts, **changes}}


@pytest.mark.parametrize(
    ("ssim", "phrase"),
    [
        (0.9, "the server sees more of an image than a copy at half its resolution shows (0.800)"),
        (0.815, "the server sees about as much of an image as a copy at half its resolution shows (0.800)"),
        (0.785, "the server sees about as much of an image as a copy at half its resolution shows (0.800)"),
        (0.59, "the server sees about as much of an image as a copy at a quarter of its resolution shows (0.600)"),
        (0.7, "between a quarter (0.600) and half (0.800)"),
        (0.5, "less than a copy at a quarter of its resolution shows (0.600), more than a guess (0.400)"),
        (0.3, "no more than a guess without features (0.400). This decoder failed; a better one may not."),
    ],
)
def test_the_verdict_compares_with_the_references(ssim, phrase):
    assert phrase in inversion_verdict(summary_with(ssim))
    assert f"an SSIM of {ssim:.3f}" in inversion_verdict(summary_with(ssim))


def test_the_table_has_cuts_first_and_references_last():
    table = inversion_table(summary_with(0.9))
    assert table.rows[0] == ["features of encoder1 (this job)", "0.900", "20.0", "0.500", "400", "2.0 kB"]
    assert [row[1] for row in table.rows[1:]] == ["0.800", "0.600", "0.400"]
    assert table.totals == 3
    assert inversion_table({}).rows == ()


def test_the_words_say_who_and_noise():
    said = " ".join(inversion_words({**summary_with(0.9, feature_noise=0.5), "split": {"labels": "private"}}))
    assert "24 patches of the training images of a, b" in said
    assert "6 patches of images of c" in said
    assert "noise of standard deviation 0.5" in said
    assert "lower bound" in said
    assert "as they began only" not in said
    assert "noise" not in " ".join(inversion_words(summary_with(0.9)))


@pytest.mark.parametrize(("models", "got"), [({"b": "models/last.b", "a": "models/last.a"}, "a, b"), ({}, "no site")])
def test_the_words_say_which_sites_gave_their_own_parts_at_the_end(models, got):
    summary = {**summary_with(0.9), "split": {"site_update": "separate"}, "final": {"models": models}}
    said = " ".join(inversion_words(summary))
    assert "the server knows the parts of the sites as they began only" in said
    assert f"At the end it got that of {got}, as a site's policy allows (rule submit_model)" in said


def test_the_verdict_says_that_the_jobs_own_cut_was_not_measured_and_how_long_the_decoder_learned():
    own, other = inversion_verdict(summary_with(0.9)), inversion_verdict(summary_with(0.9, cut="bottom"))
    assert "not measured" not in own
    assert "by a decoder that was trained for 400 steps with" in own
    assert other.startswith("The job's own cut, bottom, was not measured. From the features of encoder1")


LABELS_SHARED = "The labels of these patches were sent to the server as they are."
LABELS_PRIVATE = "Labels stayed at the sites in form only"


@pytest.mark.parametrize("labels", ["shared", "private"])
@pytest.mark.parametrize(
    ("site_update", "phrase"),
    [
        ("averaged", "After each round every site sent its part of the network"),
        ("summed", "In each step every site sent the gradients of its part"),
        ("handed_on", "After its turn every site sent its part of the network"),
        ("separate", "At the end the server got the part of alpha, beta"),
    ],
)
def test_every_page_of_split_training_says_what_left_probed_or_not(tmp_path, labels, site_update, phrase):
    own = ("alpha", "beta") if site_update == "separate" else ()
    run = make_run(tmp_path / "run", plan_of(split={"labels": labels, "site_update": site_update}), own)
    text = words(write_report(run))
    assert "This was not measured. fedseg probe-split RUN --data DIR does it" in text
    before_the_probe = text[: text.index("How much of an image")]
    assert phrase in before_the_probe
    assert (LABELS_SHARED in before_the_probe) == (labels == "shared")
    assert (LABELS_PRIVATE in before_the_probe) == (labels == "private")


def test_a_run_whose_sites_kept_their_parts_says_why_it_cannot_be_probed(tmp_path, data, capsys):
    run = make_run(tmp_path / "run", plan_of(split={"site_update": "separate"}), ("alpha",))
    summary = read_summary(run)
    write_summary({**summary, "final": {"model": None, "models": {}}}, run / "report")
    text = words(write_report(run))
    assert "This was not measured and cannot be" in text
    assert "do not let it out without the rule submit_model" in text
    assert "could still learn to invert them" in text
    assert "No site gave the trained part away" in text
    assert probe(run, "--data", data) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "only with the rule submit_model" in said
    assert "could still learn to invert them" in said


def test_pages_of_runs_with_models_of_sites_call_them_so(tmp_path):
    own = make_run(tmp_path / "own", plan_of(split={"site_update": "separate"}), ("alpha", "beta"))
    common = make_run(tmp_path / "common", plan_of(split={"site_update": "averaged"}))
    dice = {"mean": 0.8, **dict.fromkeys(plan_of().task.region_names, 0.8)}
    scored = {site: {"cases": 2, "dice": dice} for site in SITES}
    texts = []
    for run in (own, common):
        summary = read_summary(run)
        entry = {
            "round": 0,
            "sites": {site: {"num_samples": 2} for site in SITES},
            "weights": dict.fromkeys(SITES, 0.5),
        }
        final = {**summary["final"], "sites": scored}
        write_summary({**summary, "rounds": [entry], "final": final}, run / "report")
        texts.append(words(write_report(run)))
    first, second = texts
    assert all("features, gradients and whatever else goes in direct calls pass no filter" in text for text in texts)
    assert "each site's own model, on its own cases, reaches a mean Dice of 0.800" in first
    assert "final model" not in first.lower()
    assert "global model" not in first
    assert "How updates became one model" not in first
    assert "the final model reaches a mean Dice of 0.800" in second
    note = own_models_note({"x": read_summary(own), "y": read_summary(common)})
    assert note.startswith("x: every site was scored with a model of its own")
    page = write_comparison({"x": read_summary(own), "y": read_summary(common)}, tmp_path / "both")
    assert note in words(page["html"])
    assert note in page["md"].read_text("utf-8")
    assert own_models_note({"y": read_summary(common)}) == ""


def test_a_page_without_split_training_has_no_such_section(tmp_path):
    ordinary = make_run(tmp_path / "ordinary", parse_plan(PLAN))
    assert "features tell" not in words(write_report(ordinary))
