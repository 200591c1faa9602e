"""Encryption as filters: what leaves a site, what comes to it, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.fuel.utils import fobs

from fedseg.contract.protocol import (
    ENCRYPTED_FACTS,
    MODE,
    MODEL_ID,
    REASON,
    RUN_ID,
    SCALE,
    STEPS,
    TEXT,
    WEIGHED,
    WEIGHT,
)
from fedseg.errors import RefusalError
from fedseg.filters.encrypt import ALGORITHM, DecryptModel, EncryptUpdate
from fedseg.privacy.encryption.ciphertexts import CiphertextSum, read_ciphertexts
from fedseg.privacy.encryption.context import make_contexts, public_context, secret_context
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, EncryptedRound, first_id
from fedseg.privacy.encryption.encrypted_update import decrypt_update, encrypt_update
from fedseg.privacy.encryption.fixed_point import MODES, choose_fields
from fedseg.site.decrypted_model import load_decrypted
from fedseg.site.profile import CONTEXT_FILE
from outgoing import make_context, make_fl_context, make_message, make_update

SITE, SERVER = make_contexts()
KEY, PUBLIC = secret_context(SITE), public_context(SERVER)
TASK = {WEIGHT: 0.25, SCALE: 0.1, MODE: "exact", WEIGHED: 3}


@pytest.fixture(autouse=True)
def _arrays_can_be_serialised():
    numpy_decomposers.register()


def context_for(folder, key=SITE, **task):
    """A task ``upload`` at a site with this key."""
    folder.mkdir(parents=True, exist_ok=True)
    if key is not None:
        (folder / CONTEXT_FILE).write_bytes(key)
    made = make_context(folder, task_meta={**TASK, **task})
    object.__setattr__(made.profile, "encryption_context", folder / CONTEXT_FILE)
    return made


def encrypted(folder, update, **task):
    return EncryptUpdate().run(update, context_for(folder, **task))


# ---------------------------------------------------------------------- updates


@pytest.mark.parametrize("mode", MODES)
def test_the_server_adds_what_sites_encrypt_and_sites_read_the_weighted_mean(tmp_path, mode):
    updates, weights = [make_update(seed) for seed in range(3)], (0.5, 0.3, 0.2)
    total = None
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        sent = encrypted(tmp_path / str(number), update, **{WEIGHT: weight, MODE: mode}).arrays
        ciphertexts = read_ciphertexts(sent)
        total = total or CiphertextSum(len(ciphertexts.blocks), PUBLIC)
        total.add(ciphertexts)
    point = choose_fields(mode, 3, KEY.parameters.plain_modulus, KEY.parameters.max_sites)
    mean = decrypt_update(total.result(), updates[0].arrays, 1.0, 0.1, point, KEY)
    for name in updates[0].arrays:
        expected = sum(w * u.arrays[name].astype(np.float64) for w, u in zip(weights, updates, strict=True))
        np.testing.assert_allclose(mean[name], expected, rtol=0, atol=MODES[mode] * 0.1)


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
        ({WEIGHT: 1.5}, "weight 1.5"),
        ({WEIGHT: None}, "does not say"),
        ({WEIGHT: True}, "does not say"),
        ({MODE: "none"}, "mode is 'none'"),
        ({MODE: None}, "mode is 'None'"),
        ({WEIGHED: 48}, "from 1 to 47"),
        ({WEIGHED: 0}, "from 1 to 47"),
    ],
)
def test_a_task_that_cannot_be_followed_is_refused(tmp_path, task, said):
    with pytest.raises(RefusalError, match=said) as refusal:
        encrypted(tmp_path, make_update(), **task)
    assert refusal.value.reason == "privacy"


def test_an_update_that_lacks_arrays_is_refused(tmp_path):
    update = make_update()
    del update.arrays[next(iter(update.arrays))]
    with pytest.raises(RefusalError, match=r"1 array\(s\) of the network are kept back"):
        encrypted(tmp_path, update)


# ----------------------------------------------------------------------- models


START = {name: value / 0.01 for name, value in make_update(7).arrays.items()}


def make_round(seed, key=KEY):
    point = choose_fields("exact", 1, key.parameters.plain_modulus, key.parameters.max_sites)
    return EncryptedRound(encrypt_update(make_update(seed).arrays, 1.0, 0.1, point, key), 1.0, 0.1, 1, "exact", key.key)


ROUNDS = (make_round(1), make_round(2))


def model_after(rounds, base=0):
    """The model after ``rounds`` rounds for a site that has the one after ``base``; None for one that has nothing."""
    ids = EncryptedModel(first_id(START), ROUNDS).ids()
    if base is None:
        return EncryptedModel(ids[0], ROUNDS[:rounds], START)
    return EncryptedModel(ids[base], ROUNDS[base:rounds])


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

    def send(model, task="train", **meta):
        context = FLContext()
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
    stranger = EncryptedModel(first_id(START), (make_round(1, other),), START)
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
