import json
import shutil
from pathlib import Path

import pytest

from fedseg.deployment.coordination.session import Coordinator
from fedseg.errors import ConfigurationError, FedsegError, UsageError
from fedseg.jobs.allowed_components import component_classes
from fedseg.jobs.job import apply_settings, parse_setting, read_job
from fedseg.jobs.packaging import package_job
from fedseg.version import __version__

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))
IDS = [path.name for path in JOBS]


@pytest.mark.parametrize("folder", JOBS, ids=IDS)
def test_every_job_is_complete_and_of_this_version(folder):
    job = read_job(folder)
    plan = job.check()
    assert job.name == folder.name
    assert plan.fedseg_version == __version__
    assert folder.name.startswith(plan.task.name)


@pytest.mark.parametrize("folder", JOBS, ids=IDS)
def test_every_job_is_configuration_only(folder):
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".json"}
    assert not any("$" in p.read_text("utf-8") or "_target_" in p.read_text("utf-8") for p in folder.rglob("*.json"))


@pytest.mark.parametrize("folder", JOBS, ids=IDS)
def test_every_job_is_valid_for_flare(folder):
    from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
    from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

    valid, message, meta = JobMetaValidator().validate(
        folder.name, zip_directory_to_bytes(str(ROOT / "jobs"), folder.name)
    )
    assert valid, message
    assert meta["name"] == folder.name


@pytest.fixture
def job(tmp_path):
    return read_job(Path(shutil.copytree(ROOT / "jobs" / "brats_fedavg", tmp_path / "job")))


def test_options_change_the_copy_and_not_the_job(job, tmp_path):
    apply_settings(
        job,
        rounds=3,
        threads=2,
        seed=9,
        settings=[
            "task.patch_size=[32,32,32]",
            "training.optimizer=sgd",
            "aggregator.weight_by=steps",
            "network.res_units=1",
        ],
    )
    plan = job.check()
    assert (plan.seed, plan.training.threads, plan.training.optimizer) == (9, 2, "sgd")
    assert plan.task.patch_size == (32, 32, 32)
    written = read_job(job.write(tmp_path / "copy"))
    assert written.check() == plan
    assert written.workflow["num_rounds"] == 3
    assert written.workflow["aggregator"]["args"] == {"weight_by": "steps"}
    assert read_job(job.folder).check() != plan


def set_and_check(job, setting):
    apply_settings(job, None, None, None, [setting])
    job.check()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.epochs=3", "training.epochs"),
        ("training.local_epochs=none", "training.local_epochs"),
        ("nonsense=1", "nonsense"),
        ("task=lung", "lung"),
        ("task.patch_size=[30,30,30]", "patch_size"),
        ("workflow.rounds=3", "rounds"),
        ("workflow.min_sites=0", "min_sites"),
        ("aggregator.weight_by=cases", "weight_by"),
        ("aggregator.alpha=0.5", "alpha"),
        ("components.x=1", "components.x"),
        ("workflow.a.b=1", "workflow"),
        ("network.name=resnet", "resnet"),
        ("seed=-3", "seed"),
        ("training=5", "training"),
        ("network=5", "network"),
        ("network.name=[]", "network.name"),
        ("aggregator=5", "aggregator"),
        ('task.regions={"WT": [[1]]}', "regions"),
        ("training.learning_rate=Infinity", "learning_rate"),
        ('workflow.task_check_period="x"', "task_check_period"),
        ('workflow.keep_updates="no"', "keep_updates"),
        ('workflow.run_id="../x"', "run_id"),
        ("workflow.aggregator=5", "FederatedTraining|aggregator"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(job, setting, named):
    with pytest.raises(FedsegError, match=named):
        set_and_check(job, setting)


def test_a_task_is_set_by_name_by_file_and_by_job(job, tmp_path):
    declaration = {
        "name": "spleen", "modality": "CT", "channels": ["ct"], "labels": {"spleen": 1}, "normalisation": "zscore",
        "patch_size": [32, 32, 32],
    }  # fmt: skip
    (tmp_path / "spleen.json").write_text(json.dumps(declaration), "utf-8-sig")
    for value, name in (
        (tmp_path / "spleen.json", "spleen"),
        ("pancreas", "pancreas"),
        (ROOT / "jobs" / "brats_fedavg", "brats"),
        (json.dumps(declaration), "spleen"),
    ):
        apply_settings(job, None, None, None, [f"task={value}"])
        assert (job.plan.task.name, job.plan.dataset) == (name, name)
    apply_settings(job, None, None, None, [f"task={tmp_path / 'spleen.json'}", "task.patch_size=[64,64,64]"])
    assert job.plan.task.patch_size == (64, 64, 64)
    with pytest.raises(UsageError, match=r"'no.json' is no task: name one of brats"):
        apply_settings(job, None, None, None, ["task=no.json"])


def test_the_page_shows_the_plan_of_a_job():
    page = (ROOT / "docs" / "reference" / "job-folder.md").read_text("utf-8")
    shown = page.partition("```json\n")[2].partition("```")[0]
    assert json.loads(shown) == read_job(ROOT / "jobs" / "hippocampus_fedavg").declaration


def test_settings_of_one_job_stay_out_of_another(job):
    given = {"local_epochs": 2, "batch_size": 2}
    job.set("training", given)
    job.set("training.batch_size", 8)
    assert given == {"local_epochs": 2, "batch_size": 2}
    assert job.check().training.batch_size == 8


@pytest.mark.parametrize("text", ["no-equals", "=3", ""])
def test_a_setting_needs_a_key_and_a_value(text):
    with pytest.raises(UsageError, match="key=value"):
        parse_setting(text)


@pytest.mark.parametrize("path", ["fedseg.cli.main", "fedseg.nothing.Here", "os.system", "Executor"])
def test_a_component_must_be_a_listed_class(job, path):
    job.client["executors"][0]["executor"]["path"] = path
    with pytest.raises(ConfigurationError, match="allowed_components"):
        job.check()


def test_a_job_runs_no_code_by_being_checked(job, tmp_path):
    touched = tmp_path / "touched"
    job.workflow["aggregator"] = {"path": "subprocess.Popen", "args": {"args": ["touch", str(touched)]}}
    with pytest.raises(ConfigurationError, match=r"subprocess\.Popen"):
        job.check()
    assert not touched.exists()


def test_a_folder_that_is_no_job_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"lacks meta\.json"):
        read_job(tmp_path)


def test_a_damaged_job_is_refused(job):
    (job.folder / "app" / "config" / "fedseg.json").write_text("{", "utf-8")
    with pytest.raises(ConfigurationError, match=r"fedseg\.json"):
        read_job(job.folder)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a b", "ä", "-a", ""])
def test_a_name_that_is_none_for_a_folder_is_refused_before_it_is_one(job, tmp_path, name):
    job.name = name
    with pytest.raises(ConfigurationError, match=r"meta.json: name is .*, but must be the name of a job"):
        job.check()
    session = Session()
    with pytest.raises(ConfigurationError, match="the name of a job"):
        Coordinator(lambda: session, "ada@example.org").submit(job)
    assert session.submitted == []
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


class Session:
    """FLARE's session, as far as a job is submitted by it."""

    def __init__(self):
        self.submitted = []

    def submit_job(self, folder):
        self.submitted.append(Path(folder).name)
        return "id"


def test_a_job_in_another_encoding_is_written_as_flare_reads_it(job, tmp_path):
    for path in job.folder.rglob("*.json"):
        path.write_text(path.read_text("utf-8"), "utf-16")
    again = read_job(job.folder)
    again.check()
    for path in again.write(tmp_path / "copy").rglob("*.json"):
        json.loads(path.read_bytes().decode("ascii"))
    session = Session()
    assert Coordinator(lambda: session, "ada@example.org").submit(again) == "id"
    assert session.submitted == ["brats_fedavg"]


def test_a_packed_job_carries_the_code_and_nothing_else(job, tmp_path):
    folder = package_job(job, tmp_path / "packed")
    custom = folder / "app" / "custom"
    assert (custom / "fedseg" / "executors" / "training.py").is_file()
    assert not list(custom.rglob("__pycache__"))
    assert [p.name for p in custom.iterdir()] == ["fedseg"]
    assert read_job(folder).check() == job.check()
    with pytest.raises(UsageError, match="exists already"):
        package_job(job, tmp_path / "packed")


def test_a_job_of_another_version_is_not_packed(job, tmp_path):
    job.declaration["fedseg_version"] = "9.9"
    with pytest.raises(ConfigurationError, match=r"9\.9"):
        package_job(job, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


# ------------------------------------------------------------------------- filters


def filtered(folder, *chain, tasks=("train",), restored=True):
    """A copy of brats_fedavg with filters, each a name and arguments."""
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "brats_fedavg", folder / "job")))
    filters = [{"path": PATHS[name], "args": dict(arguments)} for name, arguments in chain]
    job.client["task_result_filters"] = [{"tasks": list(tasks), "filters": filters}]
    if restored:
        restore = {"path": "fedseg.filters.restore.RestoreUpdate", "args": {}}
        job.server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": [restore]}]
    return job


PATHS = {path.rpartition(".")[2]: path for path in component_classes()}
SHARE, QUANTIZE, CLIP = ("ShareFraction", {"fraction": 0.1}), ("QuantizeUpdate", {}), ("NormClip", {"norm": 1.0})


def test_filters_are_built_in_order_and_fresh(tmp_path):
    job = filtered(tmp_path, ("PrivateLayers", {"last": 1}), CLIP, SHARE, QUANTIZE)
    job.check()
    first, second = job.build_filters(), job.build_filters()
    assert [type(f).__name__ for f in first] == ["PrivateLayers", "NormClip", "ShareFraction", "QuantizeUpdate"]
    assert not {id(f) for f in first} & {id(f) for f in second}
    assert job.build_filters("validate") == []
    assert read_job(ROOT / "jobs" / "brats_fedavg").build_filters() == []


def test_a_setting_reaches_the_sites_executor():
    job = read_job(ROOT / "jobs" / "hippocampus_statistics")
    job.set("executor.noise", {"epsilon": 2.0})
    job.check()
    assert job.client["executors"][0]["executor"]["args"] == {"noise": {"epsilon": 2.0}}
    job.set("executor.noize", 1)
    with pytest.raises(ConfigurationError, match="noize"):
        job.check()


def test_a_setting_reaches_a_filter(tmp_path):
    job = filtered(tmp_path, SHARE)
    apply_settings(job, None, None, None, ["filter.ShareFraction.fraction=0.01", "filter.ShareFraction.clip=0.5"])
    job.check()
    (built,) = read_job(job.write(tmp_path / "copy")).build_filters()
    assert (built.fraction, built.clip) == (0.01, 0.5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("filter.NormClip.norm=1", r"filter\.CLASS\.ARGUMENT=VALUE; this job has: \['ShareFraction'\]"),
        ("filter.ShareFraction=1", r"filter\.CLASS\.ARGUMENT=VALUE"),
        ("filter.ShareFraction.fraction=2", r"ShareFraction\.fraction is 2"),
        ("filter.ShareFraction.part=2", r"ShareFraction\.part is not known"),
    ],
)
def test_a_wrong_setting_of_a_filter_is_refused(tmp_path, setting, said):
    with pytest.raises(FedsegError, match=said):
        set_and_check(filtered(tmp_path, SHARE), setting)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ((QUANTIZE, SHARE), "ShareFraction.*in its place: layers, clip, noise, sparsify, quantise, encrypt"),
        ((SHARE, CLIP), "NormClip.*in its place"),
        ((CLIP, CLIP), "at most one filter of each"),
        ((("PrivateLayers", {"last": 1}), ("SharedLayers", {"last": 1})), "at most one filter of each"),
        ((("PrivateLayers", {"patterns": ["head.*"]}),), r"PrivateLayers\.patterns"),
        ((("PrivateLayers", {"patterns": ["*"]}),), "leaves something to share"),
        ((("RestoreUpdate", {}),), "RestoreUpdate.*filters over updates"),
    ],
)
def test_a_chain_that_no_update_passes_is_refused(tmp_path, chain, said):
    with pytest.raises(ConfigurationError, match=said):
        filtered(tmp_path, *chain).check()


@pytest.mark.parametrize(("chain", "form"), [((SHARE,), "sparse"), ((QUANTIZE,), "quantised")])
def test_a_form_that_the_server_would_not_restore_is_refused(tmp_path, chain, form):
    with pytest.raises(ConfigurationError, match=f"RestoreUpdate.*since updates arrive {form}"):
        filtered(tmp_path, *chain, restored=False).check()


def test_a_chain_of_the_wrong_direction_restores_nothing(tmp_path):
    job = filtered(tmp_path, SHARE)
    job.server["task_result_filters"][0]["direction"] = "out"
    with pytest.raises(ConfigurationError, match="RestoreUpdate"):
        job.check()


def test_filters_over_other_tasks_than_updates_are_refused(tmp_path):
    """They would hold back every score."""
    with pytest.raises(ConfigurationError, match=r"'validate'.*only those send updates"):
        filtered(tmp_path, SHARE, tasks=("train", "validate")).check()


def test_two_chains_for_one_task_are_refused(tmp_path):
    job = filtered(tmp_path, SHARE)
    job.client["task_result_filters"] *= 2
    with pytest.raises(ConfigurationError, match="one chain of filters only"):
        job.check()


@pytest.mark.parametrize(
    "chains", ["x", ["x"], [{"tasks": ["train"]}], [{"tasks": "train", "filters": [{"path": "x"}]}]]
)
def test_malformed_chains_are_refused(job, chains):
    job.client["task_result_filters"] = chains
    with pytest.raises(ConfigurationError, match=r"task_result_filters|allowed_components"):
        job.check()


def test_a_job_that_needs_arrays_before_the_first_round_asks_its_sites_for_them(tmp_path):
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "hippocampus_harmofl", tmp_path / "job")))
    job.check()
    job.client["executors"][0]["tasks"].remove("share")
    with pytest.raises(
        ConfigurationError, match=r"executors: tasks.*a list with 'share', since workflow\.shared_arrays"
    ):
        job.check()


def test_arrays_before_the_first_round_have_filters_of_their_own(tmp_path):
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "hippocampus_harmofl", tmp_path / "job")))
    private = [{"path": PATHS["PrivateLayers"], "args": {"kind": "norm"}}]
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": private}]
    job.check()
    job.client["task_result_filters"] = [{"tasks": ["share"], "filters": private}]
    with pytest.raises(ConfigurationError, match=r"PrivateLayers.*protects shared arrays too"):
        job.check()


def test_a_job_of_harmofl_without_its_part_is_refused(tmp_path):
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "hippocampus_harmofl", tmp_path / "job")))
    job.set("network", "residual_unet")
    with pytest.raises(ConfigurationError, match=r"network\.parts"):
        job.check()


def test_filters_that_cannot_protect_shared_arrays_are_refused(tmp_path):
    job = read_job(Path(shutil.copytree(ROOT / "jobs" / "brats_scaffold", tmp_path / "job")))
    filters = [{"path": PATHS["NormClip"], "args": {"norm": 1.0}}]
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": filters}]
    with pytest.raises(ConfigurationError, match=r"NormClip.*protects shared arrays too.*workflow\.shared_arrays"):
        job.check()


def test_two_hooks_that_would_both_do_the_step_are_refused_by_name():
    """HarmoFL steps from perturbed weights, DP-SGD with noisy sums: together neither would be what it says."""
    job = read_job(ROOT / "jobs" / "hippocampus_harmofl")
    private = {"path": "fedseg.filters.dp_sgd.DPSGD", "args": {"clip": 1.0, "noise_multiplier": 8.0}}
    job.client["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": [private]}]
    job.server["workflows"][0]["args"].pop("shared_arrays")
    with pytest.raises(ConfigurationError, match="HarmoFL needs a part in the sites' training steps, which DPSGD"):
        job.check()


MOON_HOOK = {"id": "moon", "path": "fedseg.training.methods.moon.MOON"}
HALVES = {
    "no amplitudes at the server": (
        "hippocampus_harmofl",
        lambda job: job.workflow.pop("shared_arrays"),
        r"workflow\.shared_arrays is missing, but must be what combines the arrays 'amplitude/' of HarmoFL",
    ),
    "no hook that sends amplitudes": (
        "hippocampus_harmofl",
        lambda job: job.client["executors"][0]["executor"].pop("args"),
        r"executor\.hooks is \[\], but must be a list with the hook that sends the arrays 'amplitude/'",
    ),
    "no control variates at the server": (
        "brats_scaffold",
        lambda job: job.workflow.pop("shared_arrays"),
        r"shared_arrays is missing, but must be what combines the arrays 'control/' of Scaffold",
    ),
    "another hook in the place of SCAFFOLD's": (
        "brats_scaffold",
        lambda job: job.client["components"].__setitem__(0, {**MOON_HOOK, "id": job.client["components"][0]["id"]}),
        r"executor\.hooks is \['MOON'\], but must be a list with the hook that sends the arrays 'control/'",
    ),
    "the amplitudes of another method": (
        "brats_scaffold",
        lambda job: job.workflow.update(shared_arrays={"path": "fedseg.aggregators.mean_amplitude.MeanAmplitude"}),
        r"network\.parts is \[\], but must be a list with .* for MeanAmplitude",
    ),
    "SCAFFOLD from site to site": (
        "brats_scaffold",
        lambda job: job.server["workflows"].__setitem__(
            0, {"path": "fedseg.workflows.cyclic_training.CyclicTraining", "args": {"num_rounds": 2}}
        ),
        r"shared_arrays is missing, but must be what combines the arrays 'control/'",
    ),
}


@pytest.mark.parametrize("case", HALVES)
def test_half_of_a_method_is_refused(case):
    name, change, said = HALVES[case]
    job = read_job(ROOT / "jobs" / name)
    job.check()
    change(job)
    with pytest.raises(ConfigurationError, match=said):
        job.check()


def test_fednova_goes_with_fedprox_where_both_say_the_same_mu():
    job = read_job(ROOT / "jobs" / "hippocampus_fednova")
    job.client["components"] = [
        {"id": "fedprox", "path": "fedseg.training.methods.fedprox.FedProx", "args": {"mu": 0.2}}
    ]
    job.client["executors"][0]["executor"]["args"] = {"hooks": ["fedprox"]}
    with pytest.raises(ConfigurationError, match="FedNova needs local steps along the gradient of the loss alone"):
        job.check()
    job.set("aggregator.mu", 0.1)
    with pytest.raises(ConfigurationError, match=r"mu is 0\.1, but must be 0\.2, the mu of FedProx at the sites"):
        job.check()
    job.set("aggregator.mu", 0.2)
    job.check()


def test_partial_sharing_with_a_median_of_coordinates_is_refused(tmp_path):
    for sparse in (SHARE, ("SparseVector", SPARSE)):
        job = filtered(tmp_path / sparse[0], sparse)
        job.check()
        for rule in ("CoordinateMedian", "TrimmedMean"):
            job.set("workflow.aggregator", {"path": f"fedseg.aggregators.robust.{rule}"})
            with pytest.raises(
                ConfigurationError, match=f"{rule} needs every coordinate of each update, which {sparse[0]}"
            ):
                job.check()


SPARSE = {
    "fraction": 0.1, "clip": 0.1, "threshold": 0.01, "epsilon_threshold": 1, "epsilon_query": 1, "epsilon_release": 1,
}  # fmt: skip
PRIVATE = ("DPSGD", {"clip": 1.0, "noise_multiplier": 8.0})
ADAPTIVE = {"path": "fedseg.aggregators.fedpidavg.FedPIDAvg"}


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        ({"aggregator": ADAPTIVE}, "FedPIDAvg needs the training loss of every site, which DPSGD withholds"),
        ({"patience": 3}, "patience needs validation scores of every round, which DPSGD withholds"),
        ({"target_dice": 0.8}, "target_dice needs validation scores"),
        ({"selection": {"path": "fedseg.workflows.selection.DropSlow"}}, "DropSlow needs the duration"),
    ],
)
def test_a_job_whose_parts_cannot_work_together_is_refused_before_it_runs(tmp_path, workflow, said):
    job = filtered(tmp_path, PRIVATE)
    job.workflow.update(workflow)
    with pytest.raises(ConfigurationError, match=said):
        job.check()


def test_a_limit_of_epsilon_needs_a_filter_that_counts_it(tmp_path):
    job = filtered(tmp_path)
    job.set("workflow.max_epsilon", 4.0)
    with pytest.raises(ConfigurationError, match="max_epsilon needs an epsilon"):
        job.check()
    filtered(tmp_path / "private", PRIVATE).check()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda job: job.client.update(executors=3), "config_fed_client.json: executors is 3, but must be a list"),
        (lambda job: job.client["executors"].append(["train"]), r"executors\[1\] is \['train'\]"),
        (lambda job: job.client["executors"][0].update(tasks="train"), r"executors\[0\].tasks is 'train'"),
        (lambda job: job.client["executors"][0].update(executor=None), r"executors\[0\].executor is missing"),
        (lambda job: job.client["executors"][0]["executor"].update(args=[]), r"executor.args is \[\]"),
        (
            lambda job: job.client["executors"][0]["executor"].update(args={"hooks": 5}),
            r"executor.hooks is 5, but must be a list of names",
        ),
        (lambda job: job.client.update(components=[{"path": "x", "id": ["a"]}]), r"components\[0\].id is \['a'\]"),
        (lambda job: job.server["workflows"][0].update(path=["x"]), r"workflows\[0\].path is \['x'\]"),
        (lambda job: job.workflow.update(aggregator={"path": 3}), r"args.aggregator.path is 3, but must be a text"),
        (lambda job: job.server.update(workflows=[]), "workflows is"),
        (
            lambda job: job.server["workflows"][0].update(path="fedseg.aggregators.fedavg.FedAvg", args={}),
            "but must be the class of a workflow",
        ),
    ],
)
def test_files_of_another_form_are_refused_by_place(job, tmp_path, change, named):
    change(job)
    with pytest.raises(ConfigurationError, match=named):
        job.check()


def test_a_guarantee_for_a_task_that_sends_no_arrays_is_refused(tmp_path):
    """Its noise would be paid for, and the updates would leave as they are."""
    job = filtered(tmp_path, ("GaussianNoise", {"clip": 1.0, "noise_multiplier": 8.0}), tasks=("upload",))
    with pytest.raises(ConfigurationError, match=r"tasks is 'upload', but must be 'train'\..*protect nothing"):
        job.check()
