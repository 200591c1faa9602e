"""Encryption as filters: what leaves a site, what comes to it, and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from encrypted_sums import add, round_of, terms_of
from encrypted_sums import encrypted as sent_by
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import (
    ENCRYPTED_FACTS,
    MODE,
    MODEL_ID,
    REASON,
    RUN_ID,
    SCALE,
    STEPS,
    TEXT,
    UPLOAD,
    WEIGHTS,
)
from fedseg.errors import RefusalError
from fedseg.filters.encrypt import ALGORITHM, DecryptModel, EncryptUpdate
from fedseg.privacy.encryption.ciphertexts import read_ciphertexts
from fedseg.privacy.encryption.context import make_contexts, public_context, secret_context
from fedseg.privacy.encryption.encrypt_update import decrypt_update
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, EncryptedRound, first_id
from fedseg.privacy.encryption.fixed_point import MODES
from fedseg.site.decrypted_model import load_decrypted
from fedseg.site.forged_sums import FILE, MOST
from fedseg.site.policy import SitePolicy
from fedseg.site.profile import CONTEXT_FILE
from outgoing import make_context, make_fl_context, make_message, make_update
from tiny import PLAN

SITE, SERVER = make_contexts()
ENCRYPTS = (EncryptUpdate(),)
KEY, PUBLIC = secret_context(SITE), public_context(SERVER)
TASK = {WEIGHTS: [["a", 0.25], ["b", 0.5], ["c", 0.25]], SCALE: 0.1, MODE: "exact", MODEL_ID: "model"}


@pytest.fixture(autouse=True)
def _arrays_can_be_serialised():
    numpy_decomposers.register()


def context_for(folder, key=SITE, policy=None, site="a", **task):
    """A task ``upload`` at a site with this key."""
    folder.mkdir(parents=True, exist_ok=True)
    if key is not None:
        (folder / CONTEXT_FILE).write_bytes(key)
    made = make_context(folder, task_meta={**TASK, **task})
    return replace(
        made, site=site, profile=replace(made.profile, encryption_context=folder / CONTEXT_FILE, policy=policy)
    )


def encrypted(folder, update, **task):
    return EncryptUpdate().run(update, context_for(folder, **task))


# ---------------------------------------------------------------------- updates


@pytest.mark.parametrize("mode", MODES)
def test_the_server_adds_what_sites_encrypt_and_sites_read_the_weighted_mean(tmp_path, mode):
    updates, weights = {site: make_update(seed) for seed, site in enumerate("abc")}, dict(TASK[WEIGHTS])
    sent, nonces = [], {}
    for site, update in updates.items():
        left = EncryptUpdate().run(update, context_for(tmp_path / site, site=site, **{MODE: mode}))
        sent.append(read_ciphertexts(left.arrays))
        nonces[site] = left.steps[-1]["nonce"]
    terms = terms_of(weights, scale=0.1, mode=mode)
    mean = decrypt_update(add(sent, PUBLIC), updates["a"].arrays, nonces, terms, KEY)
    for name in updates["a"].arrays:
        expected = sum(weights[site] * updates[site].arrays[name].astype(np.float64) for site in updates)
        np.testing.assert_allclose(mean[name], expected, rtol=0, atol=MODES[mode] * 0.1)
    assert len(set(nonces.values())) == 3


def test_the_message_holds_ciphertext_and_no_plain_value(tmp_path):
    update = make_update()
    plain = make_message(dict(update.arrays))
    sent = EncryptUpdate().process(plain, make_fl_context(context_for(tmp_path)))
    assert sent.get_return_code() == ReturnCode.OK
    dxo = from_shareable(sent)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert dxo.meta[MetaKey.PROCESSED_ALGORITHM] == ALGORITHM
    assert {array.dtype for array in dxo.data.values()} == {np.dtype(np.uint8)}
    values = b"".join(np.ascontiguousarray(value).tobytes() for value in update.arrays.values())
    windows = [values[start : start + 8] for start in range(0, len(values) - 7, 8)]
    assert all(window in fobs.dumps(plain) for window in windows[::97]), "else the search would find nothing anywhere"
    content = fobs.dumps(sent)
    assert not any(window in content for window in windows)


def test_the_record_says_how_it_was_encrypted(tmp_path):
    (step,) = encrypted(tmp_path, make_update()).steps
    assert step.pop("seconds") > 0
    assert len(step.pop("nonce")) == 32
    assert step.pop("bytes_per_parameter") > 7
    assert step.pop("error") == pytest.approx(3 / 2 / 4194301, rel=1e-6)
    assert step == {
        "filter": "EncryptUpdate",
        "stage": 60,
        "mechanism": "homomorphic encryption (BFV)",
        "mode": "exact",
        "sites": 3,
        "key": KEY.key,
        "security_bits": 192,
    }


def test_the_sites_guard_knows_every_text_of_the_record(tmp_path):
    (step,) = encrypted(tmp_path, make_update()).steps
    texts = [value for value in step.values() if isinstance(value, str)]
    assert {step["key"], step["nonce"], step["mode"]} < set(texts)
    assert all(EncryptUpdate().tells(text, parse_plan(PLAN)) for text in texts)
    for other in (step["nonce"] + "0", step["nonce"][:-1], "patient-7", "g" * 32, step["key"] * 3):
        assert not EncryptUpdate().tells(other, parse_plan(PLAN))


def test_equal_updates_do_not_look_equal(tmp_path):
    one, other = (encrypted(tmp_path, make_update()).arrays["ciphertexts"] for _ in range(2))
    size = min(one.size, other.size)
    assert (one[:size] == other[:size]).mean() < 0.2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "has no encryption context"),
        (b"nothing", "cannot be read"),
        (SERVER, "holds no secret key"),
    ],
)
def test_without_a_usable_key_nothing_leaves(tmp_path, key, said):
    reply = EncryptUpdate().process(
        make_message(dict(make_update().arrays)), make_fl_context(context_for(tmp_path / "patient-7", key))
    )
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert reply.get_header(REASON) == "privacy"
    assert said in reply.get_header(TEXT)
    assert "patient-7" not in reply.get_header(TEXT)


def test_a_context_below_128_bits_is_refused_at_the_site(tmp_path, monkeypatch):
    weak = {256: lambda degree: 50, 192: lambda degree: 60, 128: lambda degree: 72}
    monkeypatch.setattr("fedseg.privacy.encryption.context._LEVELS", weak)
    with pytest.raises(RefusalError, match="less than 128 bits of security"):
        encrypted(tmp_path, make_update())


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({SCALE: 0.001}, "beyond the scale"),
        ({SCALE: 0.0}, "scale 0.0"),
        ({SCALE: float("nan")}, "scale nan"),
        ({SCALE: None}, "does not say"),
        ({SCALE: True}, "does not say"),
        ({WEIGHTS: [["a", 1.5], ["b", 0.5]]}, "weight 1.5"),
        ({WEIGHTS: None}, "does not say"),
        ({MODE: "none"}, "mode is 'none'"),
        ({MODE: None}, "does not say"),
        ({WEIGHTS: [[f"{n}", 1 / 48] for n in range(47)] + [["a", 1 / 48]]}, "from 1 to 47"),
        ({WEIGHTS: [["a", 1.0]]}, "updates of 1 site"),
        ({WEIGHTS: [["a", 1.0], ["b", 0.0]]}, "updates of 1 site"),
        ({WEIGHTS: [["a", 0.9995], ["b", 0.0005]]}, "updates of 1 site"),
    ],
)
def test_a_task_that_cannot_be_followed_is_refused(tmp_path, task, said):
    with pytest.raises(RefusalError, match=said) as refusal:
        encrypted(tmp_path, make_update(), **task)
    assert refusal.value.reason == "privacy"


@pytest.mark.parametrize(("least", "allowed"), [(None, True), (1, True), (3, True), (4, False)])
def test_a_site_encrypts_for_no_fewer_sites_than_its_policy_says(tmp_path, least, allowed):
    context = context_for(tmp_path, policy=SitePolicy(min_sites=least))
    if allowed:
        assert EncryptUpdate().run(make_update(), context).arrays
    else:
        with pytest.raises(RefusalError, match="updates of 3 site"):
            EncryptUpdate().run(make_update(), context)


def test_an_update_that_lacks_arrays_is_refused(tmp_path):
    update = make_update()
    del update.arrays[next(iter(update.arrays))]
    with pytest.raises(RefusalError, match=r"1 array\(s\) of the network are kept back"):
        encrypted(tmp_path, update)


# ----------------------------------------------------------------------- models


START = {name: value / 0.01 for name, value in make_update(7).arrays.items()}


ABC = {"a": 0.25, "b": 0.5, "c": 0.25}


def make_round(seed, before, key=KEY, **changes):
    """The sum of three sites' updates, which are all the same."""
    terms = terms_of(**{"weights": ABC, "before": before, "scale": 0.1, **changes})
    return round_of(dict.fromkeys(terms.weights, make_update(seed).arrays), terms, key)


def follow(*seeds):
    """The whole model to which the rounds of these seeds lead."""
    model = EncryptedModel(first_id(START), (), START)
    for seed in seeds:
        model = replace(model, rounds=(*model.rounds, make_round(seed, model.ids()[-1])))
    return model


WHOLE = follow(1, 2)


def model_after(rounds, base=0):
    """The model after ``rounds`` rounds for a site that has the one after ``base``; None for one that has nothing."""
    if base is None:
        return EncryptedModel(WHOLE.base, WHOLE.rounds[:rounds], START)
    return EncryptedModel(WHOLE.ids()[base], WHOLE.rounds[base:rounds])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Sends a model through the filter, as FLARE does for a task, and returns the message that the executor gets."""
    monkeypatch.setenv("FEDSEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    (tmp_path / "state" / "a").mkdir(parents=True)
    (tmp_path / "state" / "a" / CONTEXT_FILE).write_bytes(SITE)
    workspace = SimpleNamespace(
        get_site_config_dir=lambda: str(tmp_path / "local"), get_run_dir=lambda job: str(tmp_path / "job")
    )

    def send(model, task="train", filters=ENCRYPTS, **meta):
        context = FLContext()
        runner = SimpleNamespace(task_result_filters={f"{UPLOAD}/out": list(filters)})
        context.set_prop(FLContextKey.RUNNER, runner, private=True)
        context.set_prop(ReservedKey.ENGINE, SimpleNamespace(get_workspace=lambda: workspace), private=True)
        context.set_prop(ReservedKey.IDENTITY_NAME, "a", private=True)
        context.set_prop(ReservedKey.RUN_NUM, "job-1", private=True)
        context.set_prop(FLContextKey.TASK_NAME, task, private=True)
        told = {MetaKey.PROCESSED_ALGORITHM: ALGORITHM, ENCRYPTED_FACTS: model.facts(), RUN_ID: "run", **meta}
        message = DXO(DataKind.WEIGHTS, data=model.to_arrays(), meta=told).to_shareable()
        message.set_header(AppConstants.CURRENT_ROUND, 5)
        return DecryptModel().process(message, context)

    send.folder = tmp_path / "state" / "a" / "run"
    return send


def expected_id(seeds):
    """The server's name of the model to which the rounds of these seeds lead."""
    return model_after(len(seeds), None).ids()[-1]


def assert_model(message, *seeds):
    assert message.get_header(REASON) is None, message.get_header(TEXT)
    assert message.get_header(AppConstants.CURRENT_ROUND) == 5
    dxo = from_shareable(message)
    assert dxo.data_kind == DataKind.WEIGHTS
    assert dxo.meta == {RUN_ID: "run", MODEL_ID: expected_id(seeds)}
    changes = [make_update(seed).arrays for seed in seeds]
    for name, value in START.items():
        expected = value + sum(c[name].astype(np.float64) for c in changes)
        np.testing.assert_allclose(dxo.data[name], expected, rtol=0, atol=2e-6)


def assert_refused(message, reason, said):
    assert message.get_header(REASON) == reason
    assert said in message.get_header(TEXT)


def test_a_site_follows_round_by_round_with_one_sum_a_task(site):
    assert_model(site(model_after(0, None)))
    assert_model(site(model_after(1, 0)), 1)
    assert_model(site(model_after(2, 1)), 1, 2)
    assert sorted(path.name for path in site.folder.iterdir()) == ["model.safetensors"]


def test_a_site_that_missed_rounds_needs_them_or_says_so(site):
    assert_refused(site(model_after(2, 1)), "history", "needs all rounds")
    assert_model(site(model_after(0, None)))
    assert_refused(site(model_after(2, 1)), "history", "needs all rounds")
    assert_model(site(model_after(2, 0)), 1, 2)
    assert_model(site(model_after(1, None)), 1)


def test_scoring_a_model_does_not_change_what_is_kept(site):
    site(model_after(1, None))
    before = load_decrypted(site.folder)[0]
    assert_model(site(model_after(2, 1), task="validate"), 1, 2)
    assert_model(site(model_after(0, None), task="validate"))
    assert load_decrypted(site.folder)[0] == before


def test_a_kept_model_that_is_damaged_counts_as_none(site, caplog):
    site(model_after(1, None))
    (site.folder / "model.safetensors").write_bytes(b"torn")
    assert_refused(site(model_after(2, 1)), "history", "needs all rounds")
    assert "cannot be read" in caplog.text
    assert_model(site(model_after(2, None)), 1, 2)


@pytest.mark.parametrize(
    ("meta", "reason", "said"),
    [
        ({MetaKey.PROCESSED_ALGORITHM: None}, "privacy", "not encrypted"),
        ({ENCRYPTED_FACTS: None}, "privacy", "does not say what it consists of"),
        ({RUN_ID: "../elsewhere"}, "privacy", "the site's own log says why"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(site, meta, reason, said):
    assert_refused(site(model_after(0, None), **meta), reason, said)
    assert not site.folder.exists()


def test_a_round_of_another_key_is_refused_and_not_kept(site):
    other = secret_context(make_contexts()[0])
    stranger = EncryptedModel(WHOLE.base, (make_round(1, WHOLE.base, other),), START)
    assert_refused(site(stranger), "privacy", f"key {other.key}")
    assert not site.folder.exists()


def test_without_a_key_no_model_is_read(site):
    (site.folder.parent / CONTEXT_FILE).unlink()
    assert_refused(site(model_after(0, None)), "privacy", "no encryption context")


def test_an_unexpected_error_names_only_its_kind(site, monkeypatch):
    def fail(*args):
        raise KeyError("patient-7")

    monkeypatch.setattr("fedseg.filters.encrypt.load_decrypted", fail)
    message = site(model_after(0, None))
    assert_refused(message, "privacy", "KeyError")
    assert "patient-7" not in message.get_header(TEXT)
    assert STEPS not in str(dict(message))
    assert set(message) == {"__headers__"}, "no model, encrypted or not, goes on to the executor"


# ---------------------------------------------------------------------- a server that cheats


TERMS = terms_of(ABC, WHOLE.base, scale=0.1)
SENT, DRAWN = sent_by({site: make_update(seed).arrays for seed, site in enumerate("abc", 11)}, TERMS, KEY)


def pretended(parts, sites, terms=TERMS, **changes):
    """A model whose one round is the sum of these ciphertexts, said to be that of some sites."""
    sum_, nonces = add([SENT[part] for part in parts], PUBLIC), {site: DRAWN[site] for site in sites}
    return EncryptedModel(WHOLE.base, (replace(EncryptedRound(sum_, terms, nonces, KEY.key), **changes),), START)


def test_the_honest_sum_of_these_ciphertexts_is_read(site):
    for arrived in ("abc", "ab", "bc"):
        assert site(pretended(arrived, arrived)).get_header(REASON) is None
    assert not (site.folder.parent / FILE).exists()


@pytest.mark.parametrize("filters", [(), ("another filter",)])
def test_no_model_is_decrypted_in_a_job_whose_updates_are_not_encrypted(site, filters):
    assert_refused(site(pretended("abc", "abc"), filters=filters), "privacy", "lets updates out that are not encrypted")
    assert not site.folder.exists()


@pytest.mark.parametrize(
    "model",
    [
        pretended("a", "ab"),
        pretended("a", "abc"),
        pretended("aa", "ab"),
        pretended("aab", "ab"),
        pretended("abc", "ab"),
        pretended("ab", "abc"),
        pretended("ab", "bc"),
        # As if the sites had been told something else: another run, round, weight, scale or precision.
        pretended("abc", "abc", replace(TERMS, weights={"a": 1.0, "b": 0.0, "c": 0.0}), nonces=DRAWN),
        pretended("abc", "abc", replace(TERMS, weights={**ABC, "d": 0.0})),
        pretended("abc", "abc", replace(TERMS, scale=0.2)),
        pretended("abc", "abc", replace(TERMS, mode="compact")),
        # As if they had drawn other numbers.
        pretended("ab", "ab", nonces={"a": DRAWN["b"], "b": DRAWN["a"]}),
        pretended("ab", "ab", nonces={"a": "0" * 32, "b": "1" * 32}),
    ],
)
def test_a_ciphertext_that_is_not_the_sum_which_it_is_said_to_be_is_not_read(site, model):
    message = site(model)
    assert message.get_header(REASON) == "privacy"
    assert set(message) == {"__headers__"}, "nothing goes on to the executor"
    assert not site.folder.exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (pretended("a", "a"), "updates of 1 site"),
        (pretended("abc", "abc", replace(TERMS, run="another")), "one of another run"),
        (pretended("abc", "abc", replace(TERMS, before=WHOLE.ids()[1])), "one of another round"),
        (replace(WHOLE, rounds=WHOLE.rounds[::-1]), "one of another round"),
        (replace(WHOLE, rounds=(WHOLE.rounds[0],) * 2), "one of another round"),
        (EncryptedModel(WHOLE.ids()[1], WHOLE.rounds[:1]), "one of another round"),
        (EncryptedModel(first_id({**START, "w": np.zeros(1)}), WHOLE.rounds[:1], {**START, "w": np.zeros(1)}), "round"),
    ],
)
def test_a_sum_that_belongs_elsewhere_by_its_own_word_is_refused_by_name(site, model, said):
    assert_refused(site(model), "privacy", said)
    assert not (site.folder.parent / FILE).exists(), "nothing was decrypted, so nothing was told of the key"


@pytest.mark.parametrize(
    ("run", "before"), [("run", WHOLE.ids()[1]), ("another", WHOLE.base)], ids=["earlier round", "another run"]
)
def test_a_sum_of_an_earlier_round_or_of_another_run_is_not_read_under_the_name_of_this_one(site, run, before):
    elsewhere = make_round(1, before, run=run)
    told = replace(elsewhere, terms=replace(elsewhere.terms, run="run", before=WHOLE.base))
    assert_refused(site(EncryptedModel(WHOLE.base, (told,), START)), "privacy", "not what the sites")


def test_a_site_reads_no_sum_of_fewer_sites_than_its_policy_says(site, tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    policy = tmp_path / "data" / "a" / "policy.json"
    policy.write_text('{"min_sites": 3}')
    assert_refused(site(pretended("ab", "ab")), "privacy", "updates of 2 site(s) with a weight that counts")
    assert site(pretended("abc", "abc")).get_header(REASON) is None


def test_after_some_forged_sums_a_site_decrypts_nothing_under_the_key(site, caplog):
    for _ in range(MOST):
        assert_refused(site(pretended("a", "ab")), "privacy", "not what the sites of that round encrypted")
    assert_refused(site(model_after(0, None)), "privacy", "make a new key for all sites")
    assert_refused(site(model_after(0, None), **{RUN_ID: "another-run"}), "privacy", "make a new key")
    (site.folder.parent / CONTEXT_FILE).write_bytes(make_contexts()[0])
    assert_model(site(model_after(0, None)))
