"""The encrypted loop's decisions, with sites that encrypt as real ones do; whole runs are in tests/e2e."""

import json

import numpy as np
import pytest
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.dos import DOS
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fednova import FedNova
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian
from fedseg.aggregators.server_optimizers import FedAdam
from fedseg.aggregators.similarity import SimAgg
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import ENCRYPTED_FACTS, MODE, SCALE, STEPS, UPLOAD
from fedseg.contract.report import SiteReport
from fedseg.contract.update import Update
from fedseg.errors import AbortedError, ConfigurationError, FedsegError, RefusalError
from fedseg.filters.encrypt import ALGORITHM
from fedseg.models.encrypted_file import read_encrypted_file
from fedseg.models.model_file import model_header, save_model
from fedseg.networks.weights import apply_difference, get_weights, is_averaged
from fedseg.privacy.encryption.context import KEY_NAME_FILE, EncryptionError, make_contexts, secret_context
from fedseg.privacy.encryption.encrypt_update import encrypt_update
from fedseg.privacy.encryption.encrypted_model import read_encrypted_model
from fedseg.privacy.encryption.fixed_point import MODES
from fedseg.privacy.encryption.sum_tag import SumTerms
from fedseg.workflows.encrypted.history import EncryptedHistory
from fedseg.workflows.encrypted_training import EncryptedTraining
from fedseg.workflows.run.checkpoint import CheckpointError
from fedseg.workflows.run.record import RESULTS_FILE
from fedseg.workflows.selection import RandomSites
from scripted_sites import ScriptedSites, start, train
from tiny import PLAN

SITE, SERVER = make_contexts()
KEY = secret_context(SITE)
CASES = {"a": 1, "b": 2, "c": 3}
START = get_weights(parse_plan(PLAN).build_network())


class Sites:
    """Three sites that keep their models and updates and encrypt with one key.

    Attributes:
        kept: id and weights of each site's model; ``trained`` the id of the one that it trained from.
        updates: every update that was made, by (round, site).
        received: how many rounds the tasks carried, by (task, round).
    """

    def __init__(self, spoil=lambda task, site, number, answer: answer):
        self.kept, self.updates, self.received, self.weights, self.spoil = {}, {}, {}, {}, spoil
        self.trained = {}

    def __call__(self, task, site, model):
        number = model.current_round
        if task == "prepare":
            return FLModel(metrics={"training": CASES[site], "validation": 2, "test": 0})
        if task == UPLOAD:
            return self.spoil(task, site, number, self.upload(site, model))
        try:
            weights = self.decrypt(task, site, model)
        except RefusalError as error:
            return error
        if task == "train":
            return self.spoil(task, site, number, self.train(site, number, weights))
        return FLModel(metrics=dict.fromkeys(("final", "validation"), score(number)))

    def decrypt(self, task, site, model):
        assert model.meta[MetaKey.PROCESSED_ALGORITHM] == ALGORITHM
        facts = json.loads(json.dumps(model.meta[ENCRYPTED_FACTS]))
        self.received[task, model.current_round] = len(facts["rounds"])
        identity, weights = read_encrypted_model(model.params, facts).decrypt(KEY, "run", self.kept.get(site))
        if task == "train":
            self.kept[site], self.trained[site] = (identity, weights), identity
        return weights

    def train(self, site, number, weights):
        draw = np.random.default_rng([ord(site), number])
        update = {n: draw.normal(0, 0.01, w.shape).astype(np.float32) for n, w in weights.items() if is_averaged(w)}
        self.updates[number, site] = update
        self.weights[number] = weights
        report = SiteReport(
            CASES[site], -(-CASES[site] // 2), float(draw.uniform(0.1, 1)), 0.8, {"mean": float(draw.uniform())}, 2,
            largest=max(float(np.abs(value).max()) for value in update.values()),
        )  # fmt: skip
        return FLModel(params_type=ParamsType.DIFF, params={}, meta=report.to_meta())

    def upload(self, site, task):
        mode, nonce = task.meta[MODE], f"{site} in round {task.current_round}"
        terms = SumTerms("run", self.trained[site], dict(task.metrics), task.meta[SCALE], mode)
        sent = encrypt_update(self.updates[task.current_round, site], site, nonce, terms, KEY)
        step = {"filter": "EncryptUpdate", "stage": 60, "mode": mode, "sites": len(task.metrics), "key": KEY.key}
        step["nonce"] = nonce
        meta = {MetaKey.PROCESSED_ALGORITHM: ALGORITHM, STEPS: [step]}
        return FLModel(params_type=ParamsType.DIFF, params=sent.to_arrays(), meta=meta)

    def model_after(self, rounds):
        """What a server that sees everything would have: the plain loop over the rounds' applied weights."""
        weights = START
        for entry in rounds:
            mean = {
                name: sum(
                    w * self.updates[entry["round"], s][name].astype(np.float64) for s, w in entry["weights"].items()
                )
                for name in weights
                if is_averaged(weights[name])
            }
            weights = apply_difference(weights, mean)
        return weights


def score(number):
    none = {"both": 0, "reference": 0, "prediction": 0}
    part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
    return part | {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}}


def traffic(task, answer):
    """Bytes up and down: a report 3 and 4, a ciphertext 10 and 1, a refusal 2 and 5."""
    if isinstance(answer, RefusalError):
        return 2, 5
    return (10, 1) if task == UPLOAD else (3, 4)


def scripted(folder, sites, initial=None, key_name=KEY.key, context=SERVER, **arguments):
    """A run with these sites in place of FLARE's messages."""
    (folder / "state").mkdir(exist_ok=True, parents=True)
    if context is not None:
        (folder / "state" / "server_context.tenseal").write_bytes(context)
    if key_name:
        (folder / "state" / KEY_NAME_FILE).write_text(key_name)
    workflow = EncryptedTraining(**{"num_rounds": 3, "aggregator": FedAvg(), "run_id": "run", **arguments})
    return start(workflow, ScriptedSites(sites, traffic=traffic), folder, initial=initial)


def decrypted(loop, name="last"):
    """Weights of an encrypted model that the run left, as a site decrypts it."""
    return read_encrypted_file(loop.state.record.folder / f"{name}.encrypted").model.decrypt(KEY)[1]


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_the_sites_get_the_model_that_a_seeing_server_would_have_made(tmp_path, mode):
    sites = Sites()
    loop = scripted(tmp_path, sites, mode=mode)
    train(loop)
    loop.finish()
    assert loop.state.events == []
    assert loop.state.rounds[1]["weights"] == pytest.approx({"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})
    # Each of three rounds may err by the mode's part of its largest update, about 0.05, and by float32's rounding.
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 3 * (MODES[mode] * 0.06 + 1e-7))
    for name, value in loop.state.model.start_weights.items():
        np.testing.assert_array_equal(value, START[name])


@pytest.mark.parametrize("rule", [FedCostWAvg, lambda: FedAvg("uniform")])
def test_rules_weigh_as_in_the_plain_loop(tmp_path, rule):
    """The same reports handed to the rule by itself, round after round."""
    loop = scripted(tmp_path, Sites(), aggregator=rule())
    train(loop)
    again = rule()
    for entry in loop.state.rounds:
        reports = {
            site: SiteReport(part["num_samples"], part["num_steps"], part["train_loss"], part["val_loss"])
            for site, part in entry["sites"].items()
        }
        assert entry["weights"] == again.round_weights(reports)


def test_a_task_carries_the_one_sum_that_is_new(tmp_path):
    sites = Sites()
    loop = scripted(tmp_path, sites, num_rounds=4)
    train(loop)
    loop.finish()
    assert [sites.received["train", number] for number in range(4)] == [0, 1, 1, 1]
    assert loop.state.sites.tasks[1:3] == [("train", ("a", "b", "c")), (UPLOAD, ("a", "b", "c"))]


def test_a_site_that_was_not_asked_for_rounds_gets_what_it_missed(tmp_path):
    sites = Sites()
    loop = scripted(tmp_path, sites, num_rounds=8, selection=RandomSites(2))
    train(loop)
    loop.finish()
    assert loop.state.events == []
    assert max(sites.received[task] for task in sites.received if task[0] == "train") > 1
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 8 * (2e-4 * 0.06 + 1e-7))


def test_a_site_that_lost_its_model_is_named_and_gets_everything_at_once(tmp_path):
    """All three sites must answer, so a round without it would end the run."""

    def lose(task, site, number, answer):
        if (task, site, number) == (UPLOAD, "b", 1):
            sites.kept.pop("b")
        return answer

    sites = Sites(lose)
    loop = scripted(tmp_path, sites, num_rounds=4, min_sites=3)
    train(loop)
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(2, "b")]
    assert "needs all rounds" in loop.state.events[0]["what"]
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [["a", "b", "c"]] * 4
    assert loop.state.sites.tasks[5:8] == [("train", ("a", "b", "c")), ("train", ("b",)), (UPLOAD, ("a", "b", "c"))]
    assert sites.received["train", 2] == 2
    assert sites.received["train", 3] == 1, "it goes on like the others"
    # By hand: a report is 3 bytes up and 4 down, a ciphertext 10 and 1, and the answer that it lacks the model 2 and 5.
    sent = {site: (part["bytes_up"], part["bytes_down"]) for site, part in loop.state.rounds[2]["sites"].items()}
    assert sent == {"a": (13, 5), "b": (15, 10), "c": (13, 5)}


def test_a_site_that_lost_its_model_scores_the_last_one_all_the_same(tmp_path):
    sites = Sites()
    loop = scripted(tmp_path, sites)
    train(loop)
    sites.kept.pop("c")
    loop.finish()
    everybody = ("validate", ("a", "b", "c"))
    assert loop.state.sites.tasks[-3:] == [everybody, ("validate", ("c",)), everybody], (
        "the best model's task brings it the whole"
    )
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert sorted(results["final"]["sites"]) == ["a", "b", "c"]


def test_a_site_that_never_takes_the_model_is_asked_twice_and_no_more(tmp_path):
    class Forgetful(Sites):
        def decrypt(self, task, site, model):
            if (task, site) == ("train", "c"):
                raise RefusalError("history", "This site lacks the model.")
            return super().decrypt(task, site, model)

    loop = scripted(tmp_path, Forgetful(), num_rounds=1)
    train(loop)
    assert loop.state.sites.tasks[1:] == [("train", ("a", "b", "c")), ("train", ("c",)), (UPLOAD, ("a", "b"))]
    assert sorted(loop.state.rounds[0]["sites"]) == ["a", "b"]


def test_an_invited_sites_answer_during_the_upload_changes_nothing(tmp_path):
    """A site that was invited answers ``prepare`` whenever it can, also while others send ciphertexts."""

    class Late(Sites):
        def __call__(self, task, site, model):
            if site == "late":
                return FLModel(metrics={"training": 1, "validation": 2, "test": 0}) if loop.state.number >= 0 else None
            if (task, site, model.current_round) == (UPLOAD, "b", 0):
                loop.state.sites.wait(lambda: False)
            return super().__call__(task, site, model)

    loop = scripted(tmp_path, Late(), num_rounds=1)
    loop.state.sites.names = ("a", "b", "c", "late")
    train(loop)
    assert ("prepare", ("late",)) in loop.state.sites.tasks
    assert sorted(loop.state.rounds[0]["sites"]) == ["a", "b", "c"]
    assert [event["round"] for event in loop.state.events] == [-1], "its silence in the beginning, and nothing after"


def test_a_site_that_drops_out_between_the_steps_is_made_up_for(tmp_path):
    def drop(task, site, number, answer):
        return RefusalError("failed", "It broke.") if (task, site, number) == (UPLOAD, "c", 1) else answer

    sites = Sites(drop)
    loop = scripted(tmp_path, sites, mode="exact")
    train(loop)
    loop.finish()
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(1, "c")]
    # a and b had 1/6 and 2/6; of the sum of their weights they are 1/3 and 2/3.
    assert loop.state.rounds[1]["weights"] == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert loop.state.rounds[1]["notes"]["weight_of_sum"] == pytest.approx(0.5)
    assert sorted(loop.state.rounds[1]["sites"]) == ["a", "b"]
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 1e-6)


def test_too_few_ciphertexts_end_the_run_with_the_model_of_before(tmp_path):
    def drop(task, site, number, answer):
        return None if task == UPLOAD and site != "a" and number == 1 else answer

    loop = scripted(tmp_path, Sites(drop))
    with pytest.raises(FedsegError, match=r"1 site\(s\) answered in round 2, but 2 must"):
        train(loop)
    assert len(loop.state.rounds) == 1
    assert loop.state.model.sums.rounds() == [0]


def test_a_round_that_asks_a_single_site_fails_before_anything_is_encrypted(tmp_path):
    loop = scripted(tmp_path, Sites(), selection=RandomSites(1))
    with pytest.raises(FedsegError, match=r"0 ciphertext\(s\) with a weight that counts arrived, but 2 must"):
        train(loop)
    assert [task for task, _ in loop.state.sites.tasks] == ["prepare", "train"]


def test_a_ciphertext_without_weight_does_not_hide_another(tmp_path):
    """The sum of one ciphertext and of zeros is that one's update."""

    class OnlyA(FedAvg):
        def round_weights(self, reports):
            return dict.fromkeys(reports, 0.0) | {"a": 1.0}

    loop = scripted(tmp_path, Sites(), aggregator=OnlyA())
    with pytest.raises(FedsegError, match=r"1 ciphertext\(s\) with a weight that counts arrived, but 2 must"):
        train(loop)
    assert loop.state.model.sums.rounds() == []


@pytest.mark.parametrize("wrong", "abc")
def test_the_servers_name_of_the_key_decides_whichever_ciphertext_comes_first(tmp_path, wrong):
    def other(task, site, number, answer):
        if (task, site, number) == (UPLOAD, wrong, 0):
            answer.meta[STEPS][0]["key"] = "0123456789abcdef"
        return answer

    loop = scripted(tmp_path, Sites(other), num_rounds=1)
    train(loop)
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(0, wrong)]
    assert f"the round's key is {KEY.key}" in loop.state.events[0]["what"]
    assert sorted(loop.state.rounds[0]["sites"]) == sorted({"a", "b", "c"} - {wrong})


def test_a_server_without_the_keys_name_says_that_the_first_ciphertext_decides(tmp_path):
    def other(task, site, number, answer):
        if (task, site, number) == (UPLOAD, "c", 0):
            answer.meta[STEPS][0]["key"] = "0123456789abcdef"
        return answer

    loop = scripted(tmp_path, Sites(other), key_name="", num_rounds=1)
    train(loop)
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(-1, "server"), (0, "c")]
    assert "the first ciphertext of each round decides" in loop.state.events[0]["what"]


@pytest.mark.parametrize(("factor", "left_out"), [(1e6, ["b"]), (100.0, [])])
def test_a_largest_value_far_above_the_others_is_left_out(tmp_path, factor, left_out):
    """The updates' largest values are about 0.05: a million times that would leave the others no digit."""

    def boast(task, site, number, answer):
        if (task, site) == ("train", "b"):
            answer.meta["fedseg_report"]["largest"] *= factor
        return answer

    sites = Sites(boast)
    loop = scripted(tmp_path, sites, num_rounds=1)
    train(loop)
    loop.finish()
    assert [e["site"] for e in loop.state.events] == left_out
    assert all("over 1000 times the median" in e["what"] for e in loop.state.events)
    assert sorted(loop.state.rounds[0]["sites"]) == sorted({"a", "b", "c"} - set(left_out))
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 2e-4 * 0.06 * (1 if left_out else factor))


@pytest.mark.parametrize(
    ("values", "left_out"),
    [
        # The median of the others is 1.5, so the limit is 1500.
        ((1.0, 2.0, 1500.0), []),
        ((1.0, 2.0, 1500.1), ["c"]),
        ((0.0, 0.0, 5.0), []),
        ((1.0, 1e9), []),
        ((1.0, 1.0, 1.0, 1e9, 1e11), ["d", "e"]),
    ],
)
def test_outliers_among_largest_values(tmp_path, values, left_out):
    loop = scripted(tmp_path, Sites(), num_rounds=1)
    loop.state.model.begin_round()
    for site, value in zip("abcde", values, strict=False):
        report = SiteReport(1, 1, 0.5, 0.5, largest=value)
        loop.state.model.accept_update(site, Update({}, report))
    assert loop.state.model.drop_outliers() == left_out
    assert sorted(loop.state.model.reports) == sorted(set("abcde"[: len(values)]) - set(left_out))


@pytest.mark.parametrize(
    ("task", "spoil", "said"),
    [
        ("train", lambda a: setattr(a, "params", {"w": np.zeros(1)}), "arrays that are not encrypted"),
        ("train", lambda a: a.meta["fedseg_report"].update(largest=None), "largest value"),
        ("train", lambda a: a.meta["fedseg_report"].update(largest=-1.0), "is negative"),
        ("train", lambda a: a.meta["fedseg_report"].update(largest=float("nan")), "not a finite number"),
        ("train", lambda a: a.meta.clear(), "no report"),
        (UPLOAD, lambda a: a.meta.pop(MetaKey.PROCESSED_ALGORITHM), "is not encrypted"),
        (UPLOAD, lambda a: a.meta.pop(STEPS), "is not encrypted"),
        (UPLOAD, lambda a: a.meta[STEPS][0].update(mode="exact"), "in another way"),
        (UPLOAD, lambda a: a.meta[STEPS][0].update(sites=2), "in another way"),
        (UPLOAD, lambda a: a.meta[STEPS][0].update(filter="NormClip"), "in another way"),
        (UPLOAD, lambda a: a.meta[STEPS][0].update(key="0123456789abcdef"), "with the key 0123456789abcdef"),
        (UPLOAD, lambda a: a.meta[STEPS][0].pop("nonce"), "which number"),
        (UPLOAD, lambda a: setattr(a, "params", None), "not those of ciphertexts"),
        (UPLOAD, lambda a: a.params.update(ciphertexts=a.params["ciphertexts"][::-1]), "cannot be read"),
        (UPLOAD, lambda a: a.params.update(ciphertexts="x"), "update left out"),
    ],
)
def test_a_bad_answer_is_left_out_named_and_spoils_nothing(tmp_path, task, spoil, said):
    def change(asked, site, number, answer):
        if (asked, site, number) == (task, "b", 1):
            spoil(answer)
        return answer

    sites = Sites(change)
    loop = scripted(tmp_path, sites)
    train(loop)
    loop.finish()
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(1, "b")]
    assert said in loop.state.events[0]["what"]
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [["a", "b", "c"], ["a", "c"], ["a", "b", "c"]]
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 1e-4)


def test_no_second_ciphertext_of_a_site_is_added(tmp_path):
    loop = scripted(tmp_path, Sites(), num_rounds=1)
    train(loop)
    loop.state.model.begin_round()
    answer = FLModel(params_type=ParamsType.DIFF, params={}, meta={})
    with pytest.raises(RefusalError, match="was not asked for ciphertexts"):
        loop.state.model.accept_ciphertexts("a", answer)


def test_updates_of_zeros_are_a_round_like_any_other(tmp_path):
    class Still(Sites):
        def train(self, site, number, weights):
            answer = super().train(site, number, weights)
            self.updates[number, site] = {n: np.zeros_like(v) for n, v in self.updates[number, site].items()}
            answer.meta["fedseg_report"]["largest"] = 0.0
            return answer

    loop = scripted(tmp_path, Still(), num_rounds=1)
    train(loop)
    loop.finish()
    for name, value in decrypted(loop).items():
        np.testing.assert_array_equal(value, START[name])


def test_bytes_of_both_steps_are_counted(tmp_path):
    loop = scripted(tmp_path, Sites(), num_rounds=1)
    train(loop)
    assert [(s["bytes_up"], s["bytes_down"]) for s in loop.state.rounds[0]["sites"].values()] == [(13, 5)] * 3


def test_the_summary_holds_the_records_of_the_filters(tmp_path):
    loop = scripted(tmp_path, Sites(), num_rounds=1)
    train(loop)
    assert {site: part["privacy"][0]["key"] for site, part in loop.state.rounds[0]["sites"].items()} == dict.fromkeys(
        "abc", KEY.key
    )


def test_the_best_model_is_stored_and_scored_from_the_whole_history(tmp_path):
    class Scored(Sites):
        def train(self, site, number, weights):
            answer = super().train(site, number, weights)
            answer.meta["fedseg_report"]["val_scores"] = {"mean": {0: 0.1, 1: 0.9, 2: 0.2}[number]}
            return answer

    sites = Scored()
    loop = scripted(tmp_path, sites)
    train(loop)
    assert not list(tmp_path.glob("*.encrypted")), "until the end the history holds all of it, once"
    loop.finish()
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert (results["final"]["model"], results["best"]["model"]) == ("last.encrypted", "best.encrypted")
    assert results["best"]["round"] == 0
    assert sorted(results["best"]["sites"]) == ["a", "b", "c"]
    assert_close(decrypted(loop, "best"), sites.model_after(loop.state.rounds[:1]), 2e-5)
    assert_close(decrypted(loop), sites.model_after(loop.state.rounds), 5e-5)


# ----------------------------------------------------------------- going on


@pytest.mark.parametrize("stopped_after", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_model(tmp_path, stopped_after):
    """Weights, who was asked, and the decrypted model; ciphertexts are random and so never the same."""
    whole_sites = Sites()
    whole = scripted(tmp_path / "whole", whole_sites, num_rounds=5, aggregator=FedCostWAvg())
    train(whole)
    whole.finish()

    def dies(task, site, number, answer):
        if task == UPLOAD and number > stopped_after:
            raise AbortedError("stopped")
        return answer

    sites = Sites(dies)
    with pytest.raises(AbortedError):
        train(scripted(tmp_path / "stopped", sites, num_rounds=5, aggregator=FedCostWAvg()))
    sites.spoil = lambda task, site, number, answer: answer
    stored = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("encrypted-*")}
    again = scripted(tmp_path / "stopped", sites, num_rounds=5, aggregator=FedCostWAvg(), resume=True)
    train(again)
    again.finish()
    assert again.state.events == []
    assert [entry["weights"] for entry in again.state.rounds] == [entry["weights"] for entry in whole.state.rounds]
    assert_close(decrypted(again), decrypted(whole), 0)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("encrypted-*")}
    assert {name: now[name] for name in stored} == stored, "a round's sum is written once"
    assert sites.received["train", stopped_after + 1] == 1


def test_a_run_that_goes_back_leaves_the_branch_behind(tmp_path):
    sites = Sites()
    first = scripted(tmp_path, sites, num_rounds=4, keep_checkpoints=0)
    train(first)
    del first
    again = scripted(tmp_path, sites, num_rounds=4, keep_checkpoints=0, resume=True, resume_round=1)
    assert again.state.model.sums.rounds() == [0, 1]
    train(again)
    again.finish()
    assert again.state.events == []
    assert_close(decrypted(again), sites.model_after(again.state.rounds), 1e-4)
    assert sites.received["train", 2] == 2, "sites may have gone further, so they get everything"


def test_a_missing_or_damaged_round_is_named(tmp_path):
    loop = scripted(tmp_path, Sites())
    train(loop)
    history = EncryptedHistory(tmp_path / "state" / "run")
    (tmp_path / "state" / "run" / "encrypted-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"round 2 is missing; there are 1 and 3"):
        history.load(1)
    (tmp_path / "state" / "run" / "encrypted-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="round 1 is damaged"):
        history.load(0)


def test_a_sum_with_one_flipped_bit_is_not_served(tmp_path):
    loop = scripted(tmp_path, Sites())
    train(loop)
    path = tmp_path / "state" / "run" / "encrypted-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    loop.state.model.model_after(0, [None])
    for known in (None, -1, 0):
        with pytest.raises(CheckpointError, match=r"encrypted round from \d to 2 is damaged"):
            loop.state.model.model_after(2, [known])


def test_a_run_goes_on_only_from_the_model_that_it_started_from(tmp_path):
    first = scripted(tmp_path, Sites(), num_rounds=2)
    train(first)
    del first
    other = {name: value + 1 if is_averaged(value) else value for name, value in START.items()}
    plan = parse_plan(PLAN)
    path = save_model(tmp_path / "other.safetensors", model_header(plan, 0), other)
    with pytest.raises(CheckpointError, match="of a job with another start"):
        scripted(tmp_path, Sites(), initial=path, num_rounds=2, resume=True)


def test_nothing_at_the_server_is_plain_but_the_start(tmp_path):
    """All files of the run, searched for bytes of updates and models; the start, which is there, is found."""
    sites = Sites()
    loop = scripted(tmp_path, sites)
    train(loop)
    loop.finish()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def where(arrays):
        """Files that hold any sixteen bytes of any array."""
        values = [np.ascontiguousarray(value).tobytes() for value in arrays.values() if value.size >= 4]
        windows = [value[start : start + 16] for value in values for start in range(0, len(value) - 15, 256)]
        return {path.name for path, content in files.items() if any(window in content for window in windows)}

    starts = {name: value for name, value in START.items() if np.unique(value).size > 4}
    assert where(starts) == {"best.encrypted", "last.encrypted"}
    for update in sites.updates.values():
        assert where(update) == set()
    for number in (1, 2):
        assert where({name: sites.weights[number][name] for name in starts}) == set()
    assert where({name: decrypted(loop)[name] for name in starts}) == set()


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    "rule", [DOS, Krum, GeometricMedian, NormClipped, FedNova, SimAgg, CoordinateMedian], ids=lambda r: r.__name__
)
def test_rules_that_look_at_updates_are_refused(rule):
    with pytest.raises(ConfigurationError, match=f"workflow.aggregator is '{rule.__name__}', but must be a rule that"):
        EncryptedTraining(3, rule())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "small"}, r"workflow\.mode is 'small', but must be one of \['compact', 'exact'\]"),
        ({"server_optimizer": FedAdam()}, "server_optimizer is 'FedAdam', but must be left out.*only encrypted"),
        ({"keep_updates": True}, "keep_updates is True, but must be left out.*sees no updates"),
        ({"num_rounds": 0}, "workflow.num_rounds"),
        ({"min_sites": "x"}, "workflow.min_sites"),
        ({"min_sites": 1}, "min_sites is 1, but must be a whole number of at least 2 in an encrypted job"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        EncryptedTraining(**{"num_rounds": 3, "aggregator": FedAvg(), **arguments})


def test_more_sites_than_can_be_added_are_refused_before_anything_is_encrypted(tmp_path):
    loop = scripted(tmp_path, Sites(), num_rounds=1)
    loop.state.model.begin_round()
    report = SiteReport(1, 1, 0.5, 0.5, largest=1.0)
    for number in range(48):
        loop.state.model.accept_update(f"site-{number:02d}", Update({}, report))
    with pytest.raises(ConfigurationError, match="sites is 48, but must be a number from 1 to 47"):
        loop.state.model.weigh()


@pytest.mark.parametrize(
    ("content", "said"), [(None, "has no encryption context"), (SITE, "must not be at the server")]
)
def test_the_server_needs_parameters_and_refuses_a_key(tmp_path, content, said):
    with pytest.raises(EncryptionError, match=said):
        scripted(tmp_path, Sites(), context=content)
