"""Private training: clipped gradients of single patients, noise on their sum, and what the ledger is told of it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from scipy import optimize, stats

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import REASON
from fedseg.contract.update import Update
from fedseg.data.datalist import Datalist, read_datalist
from fedseg.errors import AbortedError, ConfigurationError, RefusalError
from fedseg.filters.context import patients_of
from fedseg.filters.dp_sgd import DPSGD
from fedseg.networks.weights import set_weights
from fedseg.privacy.accounting.epsilon import PATIENT, Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedseg.site.state import SiteState
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.optimisation import learning_rate
from fedseg.training.patient_dp_sgd import PatientDPSGD
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from hooked import assert_same, check_seeded_and_restarted, start_of
from outgoing import REPORT, epsilon_after, flat, make_context, make_fl_context, make_message, make_update
from tiny import PLAN, make_sites

CASES = 4
# One step of the optimizer moves the weights by the gradient itself.
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "gradient_clip": 1e9}
PLAIN |= {"learning_rate": 1.0, "batch_size": 2}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Five cases, of which the site has four: a fifth may take the place of one."""
    data = make_sites(tmp_path_factory.mktemp("data"), {"a": (CASES + 1, 1)})
    return read_datalist(data / "a")


@pytest.fixture(scope="module")
def datalist(cases):
    return Datalist(cases.training[:CASES], cases.validation)


def make(datalist, *hooks, state=None, simulated=True, **changes):
    """A trainer of the tiny plan with changed settings."""
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **PLAIN, **changes}})
    return SiteTrainer(plan, "a", datalist, TrainerSetup(state, hooks=hooks, simulated=simulated))


class SameDraws(TrainingHook):
    """Nothing but the order and the patches that DP-SGD draws."""

    order, draws = PatientDPSGD.order, PatientDPSGD.draws


def summed(datalist, hook, **options):
    """The sum over patients that one epoch of a learning rate of 1 steps along, with what the hook does to it."""
    trainer = make(datalist, hook, **options)
    update = trainer.train_round(start_of(trainer), 0, 1).update
    return -flat(update).astype(float) * len({case.patient for case in datalist.training})


def grouped(datalist, per_patient):
    """The site's training cases as those of fewer patients, a number for each."""
    names = [f"p{number}" for number, count in enumerate(per_patient) for _ in range(count)]
    training = tuple(replace(case, patient=name) for case, name in zip(datalist.training, names, strict=True))
    return replace(datalist, training=training)


def case_gradients(datalist, epoch=0, weights=None, dtype=torch.float32):
    """Slowly and by themselves: each case alone through the network and back; one row of all parameters for each."""
    trainer = make(datalist, PatientDPSGD(1.0, 0.0))
    set_weights(trainer.network, start_of(trainer) if weights is None else weights)
    trainer.network.train().to(dtype)
    rows = []
    for batch in trainer.batches(0, epoch):
        for image, classes in zip(batch["image"], batch["classes"], strict=True):
            trainer.network.zero_grad()
            trainer.loss(trainer.network(image[None].to(dtype)), classes[None]).backward()
            gradients = {name: p.grad.numpy().astype(float) for name, p in trainer.network.named_parameters()}
            rows.append(flat(gradients))
    return np.stack(rows)


def clipped(rows, norm):
    """Each row shortened to a length of ``norm``."""
    return np.stack([row * min(1.0, norm / np.linalg.norm(row)) for row in rows])


# ------------------------------------------------------------------------- limits


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_without_noise_and_clip_it_is_full_batch_descent(datalist, batch_size):
    """Three epochs, one step each along the mean gradient of all cases, written out in double precision.

    The learning rate is small enough for the rounding of single precision not to grow from step to step.
    """
    rate, epochs = 0.05, 3
    trainer = make(
        datalist, PatientDPSGD(math.inf, 0.0), batch_size=batch_size, local_epochs=epochs, learning_rate=rate
    )
    start = start_of(trainer)
    found = trainer.train_round(start, 0, 1).weights
    weights = {name: value.astype(float) for name, value in start.items()}
    written = make(datalist, PatientDPSGD(1.0, 0.0), batch_size=batch_size)
    written.network.double().train()
    parameters = dict(written.network.named_parameters())
    for epoch in range(epochs):
        for name, parameter in parameters.items():
            parameter.data = torch.from_numpy(weights[name])
            parameter.grad = None
        for batch in written.batches(0, epoch):
            for image, classes in zip(batch["image"].double(), batch["classes"], strict=True):
                (written.loss(written.network(image[None]), classes[None]) / CASES).backward()
        weights = {name: weights[name] - rate * p.grad.numpy() for name, p in parameters.items()}
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_without_noise_and_clip_it_is_the_trainer_with_one_batch(datalist):
    """The same as without a hook, where the loss is a mean over the batch's cases."""
    options = {"batch_size": CASES, "batch_dice": False, "local_epochs": 2, "learning_rate": 0.05}
    private, plain = make(datalist, PatientDPSGD(math.inf, 0.0), **options), make(datalist, SameDraws(), **options)
    start = start_of(plain)
    expected = plain.train_round(start, 0, 1).update
    for name, value in private.train_round(start, 0, 1).update.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)


# ------------------------------------------------------------------- contributions


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_the_sum_is_that_of_single_clipped_gradients(datalist, batch_size):
    """A clip between the lengths of the cases' gradients: some are shortened, others are not."""
    rows = case_gradients(datalist)
    lengths = np.sort(np.linalg.norm(rows, axis=1))
    clip = float(lengths[1] + lengths[2]) / 2
    found = summed(datalist, PatientDPSGD(clip, 0.0), batch_size=batch_size)
    expected = clipped(rows, clip).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - rows.sum(axis=0)).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("share", [1e-3, 0.3, 3.0], ids=lambda share: f"clip {share} of a gradient")
@pytest.mark.parametrize("place", range(CASES))
def test_another_case_in_the_place_of_one_moves_the_sum_by_two_clips_at_most(cases, place, share):
    """Every case is exchanged for another once."""
    ours = Datalist(cases.training[:CASES], cases.validation)
    others = list(ours.training)
    others[place] = cases.training[CASES]
    clip = share * float(np.linalg.norm(case_gradients(ours), axis=1).mean())
    one, other = (summed(site, PatientDPSGD(clip, 0.0)) for site in (ours, replace(ours, training=tuple(others))))
    assert 0 < np.linalg.norm(one - other) <= 2 * clip * (1 + 1e-4)


def test_a_case_with_a_gradient_a_million_times_as_long_moves_no_more(cases, monkeypatch):
    """Two sites differ in one case, whose loss is a million times as steep at one of them, and turned round."""
    ours = Datalist(cases.training[:CASES], cases.validation)
    clip = 0.1 * float(np.linalg.norm(case_gradients(ours), axis=1).min())
    honest = summed(ours, PatientDPSGD(clip, 0.0))
    marked = make(ours, PatientDPSGD(1.0, 0.0))
    first = next(iter(marked.batches(0, 0)))["classes"][0]

    def hostile_trainer(hook):
        trainer = make(ours, hook)
        plain = trainer.loss
        trainer.loss = lambda logits, classes: (
            plain(logits, classes) * (-1e6 if torch.equal(classes[0], first) else 1.0)
        )
        return trainer

    def moved_by(hook):
        trainer = hostile_trainer(hook)
        return -flat(trainer.train_round(start_of(trainer), 0, 1).update).astype(float) * CASES - honest

    # Turned round, the case moves the sum by exactly two clips; without a clip by a million gradients.
    assert np.linalg.norm(moved_by(PatientDPSGD(clip, 0.0))) == pytest.approx(2 * clip, rel=1e-3)
    assert np.linalg.norm(moved_by(PatientDPSGD(math.inf, 0.0))) > 1e4 * clip


def test_a_single_case_gives_a_sum_of_the_length_of_the_clip(cases):
    single = Datalist(cases.training[:1], cases.validation)
    assert np.linalg.norm(summed(single, PatientDPSGD(0.01, 0.0))) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("per_patient", [(2, 2), (1, 3), (3, 1), (4,)])
def test_of_a_patient_the_sum_of_his_gradients_is_clipped(datalist, per_patient, batch_size):
    """In a slow loop: cases one by one, added up by patient, then clipped; patients may lie over several batches."""
    site = grouped(datalist, per_patient)
    trainer = make(site, PatientDPSGD(1.0, 0.0))
    patients = [site.training[index].patient for index in PatientDPSGD(1.0, 0.0).order(trainer, 0, 0)]
    rows = case_gradients(site)
    sums = {name: sum(row for row, owner in zip(rows, patients, strict=True) if owner == name) for name in patients}
    clip = 0.9 * max(float(np.linalg.norm(row)) for row in sums.values())
    expected = sum(row * min(1.0, clip / np.linalg.norm(row)) for row in sums.values())
    found = summed(site, PatientDPSGD(clip, 0.0), batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - rows.sum(axis=0)).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_patient_with_more_cases_in_the_place_of_one_moves_the_sum_by_two_clips_at_most(
    cases, place, batch_size, dropout
):
    """What is drawn for the others stays as it was, though batches, places in the order and their number change."""
    first, second, third, *more = cases.training
    ours = Datalist((first, second, third), cases.validation)
    newcomer = [replace(case, patient="someone else") for case in more]
    others = Datalist((*ours.training[:place], *newcomer, *ours.training[place + 1 :]), cases.validation)
    assert len(others.training) == len(ours.training) + 1
    clip = 0.01 * float(np.linalg.norm(case_gradients(ours), axis=1).min())

    def total(site):
        trainer = make(site, PatientDPSGD(clip, 0.0), batch_size=batch_size)
        if dropout:
            plain = trainer.network.forward
            trainer.network.forward = lambda images: plain(torch.nn.functional.dropout(images, dropout))
        return -flat(trainer.train_round(start_of(trainer), 0, 1).update).astype(float) * site.patients("training")

    assert 0 < np.linalg.norm(total(ours) - total(others)) <= 2 * clip * (1 + 1e-3)


def test_the_learning_rate_follows_the_epoch_and_not_the_number_of_batches(datalist):
    """A course over batches would tell how many cases there are, in every coordinate and without noise."""
    rates = []
    for per_patient, batch_size in (((1, 1, 1, 1), 1), ((1, 1, 1, 1), 4), ((1, 3), 1)):
        trainer = make(
            grouped(datalist, per_patient),
            PatientDPSGD(1.0, 0.0),
            batch_size=batch_size,
            schedule="one_cycle",
            local_epochs=2,
        )
        seen = []
        trainer.apply_gradients = lambda trainer=trainer, seen=seen: seen.append(
            trainer.optimizer.param_groups[0]["lr"]
        )
        trainer.train_round(start_of(trainer), 1, 3)
        rates.append(seen)
    assert rates[0] == rates[1] == rates[2]
    assert rates[0] == [learning_rate(trainer.settings, (1 + epoch / 2) / 3) for epoch in range(2)]


def test_memory_holds_two_gradients_however_many_cases_there_are(datalist):
    for per_patient in ((1, 1, 1, 1), (4,)):
        hook = PatientDPSGD(1.0, 0.0)
        trainer = make(grouped(datalist, per_patient), hook)
        trainer.train_round(start_of(trainer), 0, 1)
        count = sum(p.numel() for p in trainer.network.parameters())
        held = [value for value in vars(hook).values() if isinstance(value, list)]
        assert sum(t.numel() for part in held for t in part if isinstance(t, torch.Tensor)) == 2 * count


def test_targets_come_from_the_kind_of_task(datalist):
    """A kind that compares with something else than the label file's classes is trained with that."""
    trainer = make(datalist, PatientDPSGD(math.inf, 0.0))
    swapped = make(datalist, PatientDPSGD(math.inf, 0.0))
    plain = swapped.objective.targets
    swapped.objective.targets = lambda batch: torch.zeros_like(plain(batch))
    one, other = (flat(t.train_round(start_of(t), 0, 1).update) for t in (trainer, swapped))
    assert np.abs(one - other).max() > 1e-4


# ----------------------------------------------------------------------------- noise


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize(("clip", "multiplier", "count"), [(0.5, 2.0, 4), (0.05, 8.0, 3)])
def test_the_noise_on_the_mean_is_multiplier_times_clip_over_cases(cases, clip, multiplier, count, simulated):
    """Sum of squares over the variance: chi-square with one degree for each parameter; exceeded once in 1e8 runs."""
    site = Datalist(cases.training[:count], cases.validation)
    noisy, clean = (summed(site, PatientDPSGD(clip, m), simulated=simulated) / count for m in (multiplier, 0.0))
    drawn = (noisy - clean) / (multiplier * clip / count)
    assert stats.chi2(drawn.size).ppf(5e-9) < np.square(drawn).sum() < stats.chi2(drawn.size).isf(5e-9)
    assert abs(drawn.mean()) < 6 / math.sqrt(drawn.size)
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-8


def test_noise_is_drawn_anew_for_each_epoch_and_round(datalist):
    """And for every parameter: the noise of one is not that of another of the same shape."""
    trainer = make(datalist, PatientDPSGD(1.0, 1.0))
    drawn = [trainer.noise_source(*where).normal((1000,), 1.0) for where in ((0, 0), (0, 1), (1, 0))]
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 6 / math.sqrt(1000)
    assert isinstance(trainer.noise_source(0, 0), SeededNoise)
    assert isinstance(make(datalist, simulated=False).noise_source(0, 0), SecureNoise)


def test_a_real_site_draws_other_noise_each_time_and_a_simulated_one_the_same(datalist):
    hook = PatientDPSGD(1.0, 1.0)
    real = [summed(datalist, hook, simulated=False) for _ in range(2)]
    seeded = [summed(datalist, hook) for _ in range(2)]
    np.testing.assert_array_equal(*seeded)
    assert np.abs(real[0] - real[1]).max() > 1
    assert np.abs(real[0] - seeded[0]).max() > 1


def test_a_killed_client_goes_on_to_the_same_model(datalist, tmp_path):
    check_seeded_and_restarted(datalist, lambda: PatientDPSGD(1.0, 0.0), tmp_path)


def test_a_killed_client_of_a_simulation_draws_the_same_noise(datalist, tmp_path):
    def rounds(folder, living):
        trainer, weights = None, start_of(make(datalist))
        for number in range(2):
            if trainer is None or not living:
                trainer = make(datalist, PatientDPSGD(1.0, 0.1), state=SiteState(folder, "run"), optimizer="adamw")
            weights = trainer.train_round(weights, number, 2).weights
        return weights

    assert_same(rounds(tmp_path / "living", True), rounds(tmp_path / "reborn", False))


# ---------------------------------------------------------------------------- cost


@pytest.mark.parametrize(("per_patient", "epochs"), [((1, 1, 1, 1), 1), ((2, 1, 1), 3), ((1, 3), 2)])
def test_a_round_costs_each_patient_as_many_releases_as_it_has_epochs(datalist, per_patient, epochs):
    """Replacing a patient moves the sum by 2 clips, however many cases he has: noise of 6 clips is 3 of that."""
    charged = []
    hook = PatientDPSGD(1.0, 6.0, charge=lambda *what: charged.append(what))
    trainer = make(grouped(datalist, per_patient), hook, local_epochs=epochs)
    trainer.train_round(start_of(trainer), 0, 1)
    assert charged == [(Release("gaussian", 3.0, unit=PATIENT, count=epochs), 0)]
    assert DPSGD(1.0, 6.0).planned() == Release("gaussian", 3.0, unit=PATIENT)


def gaussian_epsilon(mu, delta):
    """From the exact delta of each epsilon (Balle and Wang, 2018, theorem 8)."""

    def excess(value):
        tail = math.exp(value + stats.norm.logcdf(-mu / 2 - value / mu))
        return stats.norm.cdf(mu / 2 - value / mu) - tail - delta

    return optimize.brentq(excess, 0, 1000, xtol=1e-13)


@pytest.mark.parametrize(("multiplier", "rounds", "epochs"), [(5.6, 15, 2), (8.0, 50, 1), (2.0, 1, 1), (60.0, 600, 2)])
def test_epsilon_is_that_of_the_exact_formula(multiplier, rounds, epochs):
    """R rounds of E epochs are one Gaussian release whose noise is m / (2 sqrt(R E)) sensitivities."""
    hook = PatientDPSGD(1.0, multiplier)
    release = hook.release(epochs)
    found = epsilon([release] * rounds, 1e-5)
    assert found == pytest.approx(gaussian_epsilon(2 * math.sqrt(rounds * epochs) / multiplier, 1e-5), rel=1e-5)
    assert epsilon_after(DPSGD(1.0, multiplier), rounds * epochs) == pytest.approx(found)


def test_epsilon_by_published_values():
    """One sensitivity of noise: 4.377 at delta 1e-5. Two epochs of sqrt(2) sensitivities are the same."""
    for multiplier, epochs in ((2.0, 1), (2 * math.sqrt(2), 2)):
        hook = PatientDPSGD(1.0, multiplier)
        release = hook.release(epochs)
        assert epsilon([release], 1e-5) == pytest.approx(4.377, abs=5e-4)


def test_epsilon_grows_with_rounds_and_falls_with_noise():
    over_rounds = [epsilon_after(DPSGD(1.0, 5.0), rounds) for rounds in range(1, 8)]
    assert all(one < other for one, other in pairwise(over_rounds))
    over_noise = [epsilon_after(DPSGD(1.0, multiplier), 5) for multiplier in (1.0, 2.0, 4.0, 8.0, 16.0)]
    assert all(one > other for one, other in pairwise(over_noise))


# ---------------------------------------------------------------------- the filter


def site_of(datalist, filter_, folder, **options):
    """A trainer with the filter's hook, and the context of its result in round 0."""
    trainer = make(datalist, filter_.training_hook(), **options)
    context = replace(make_context(folder, trainer=trainer), patients=patients_of(datalist))
    filter_.before_task(context)
    return trainer, context


def test_a_private_round_leaves_as_it_is_and_is_charged(datalist, tmp_path):
    filter_ = DPSGD(0.5, 10.0)
    trainer, context = site_of(datalist, filter_, tmp_path, local_epochs=3)
    update = trainer.train_round(start_of(trainer), 0, 1).update
    sent = filter_.run(Update(update, REPORT), context)
    assert_same(sent.arrays, update)
    (step,) = sent.steps
    expected = gaussian_epsilon(math.sqrt(3) * 2 / 10, 1e-5)
    assert step["epsilon"] == sent.report.epsilon == pytest.approx(expected, rel=1e-5)
    assert (step["unit"], step["mechanism"], step["releases"], step["delta"]) == ("patient", "gaussian", 3, 1e-5)
    assert (step["clip"], step["noise_multiplier"], step["secure_noise"]) == (0.5, 10.0, False)
    count = sum(value.size for value in update.values())
    assert (step["coordinates"], step["noise_to_signal"]) == (count, 10 * math.sqrt(count) / CASES)
    assert (sent.report.train_loss, sent.report.val_loss, sent.report.val_scores) == (None, None, {})
    (entry,) = Ledger(tmp_path / "ledger", simulated=True).history()
    assert (entry["noise_multiplier"], entry["count"], entry["clip"]) == (5.0, 3, 0.5)
    assert entry["patient_count"] == CASES + 1, "the validation patient too"


def assert_stays(filter_, context, folder, charged=0):
    with pytest.raises(RefusalError, match="was not trained with DP-SGD, so its update does not leave") as error:
        filter_.run(make_update(), context)
    assert error.value.reason == "privacy"
    reply = filter_.process(make_message(make_update().arrays), make_fl_context(context))
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert reply.get_header(REASON) == "privacy"
    assert set(reply) == {"__headers__"}
    assert len(Ledger(folder / "ledger", simulated=True).history()) == charged


def test_an_update_that_the_hook_did_not_make_stays(datalist, tmp_path):
    """Without a trainer, from one without hooks, with another filter's hook, before training, and of another round."""
    filter_ = DPSGD(0.5, 10.0)
    assert_stays(filter_, make_context(tmp_path), tmp_path)
    for hooks in ((), (PatientDPSGD(0.5, 10.0),)):
        plain = make(datalist, *hooks)
        plain.train_round(start_of(plain), 0, 1)
        assert_stays(filter_, make_context(tmp_path, trainer=plain), tmp_path)
    trainer, context = site_of(datalist, filter_, tmp_path)
    assert_stays(filter_, context, tmp_path)
    trainer.train_round(start_of(trainer), 0, 2)
    assert_stays(filter_, replace(context, round_number=1), tmp_path, charged=1)
    filter_.run(make_update(), context)


def test_an_interrupted_round_stays(datalist, tmp_path):
    """Also where the hook has finished the same round before: a repeated round starts anew."""
    filter_ = DPSGD(0.5, 10.0)
    trainer, context = site_of(datalist, filter_, tmp_path, batch_size=1)
    weights = start_of(trainer)
    trainer.train_round(weights, 0, 1)
    assert filter_.training_hook().finished == 0
    steps = iter(range(100))
    trainer.aborted = lambda: next(steps) == 2
    with pytest.raises(AbortedError):
        trainer.train_round(weights, 0, 1)
    assert filter_.training_hook().finished == -1
    assert_stays(filter_, context, tmp_path, charged=2)


def test_what_changes_without_a_gradient_stays(datalist, tmp_path):
    """A running mean of a normalisation would leave without noise."""
    filter_ = DPSGD(0.5, 10.0)
    trainer, context = site_of(datalist, filter_, tmp_path)
    update = trainer.train_round(start_of(trainer), 0, 1).update
    with pytest.raises(RefusalError, match=r"norm\.running_mean of the update follows from no gradient") as error:
        filter_.run(Update({**update, "norm.running_mean": np.ones(4, np.float32)}, REPORT), context)
    assert error.value.reason == "privacy"


def test_a_round_is_charged_before_its_first_step(datalist, tmp_path):
    """What a round has learnt stays in the optimizer, so it is paid for also where its result never leaves."""
    filter_ = DPSGD(0.5, 10.0)
    trainer, _ = site_of(datalist, filter_, tmp_path)
    trainer.aborted = lambda: True
    with pytest.raises(AbortedError):
        trainer.train_round(start_of(trainer), 0, 1)
    assert len(Ledger(tmp_path / "ledger", simulated=True).history()) == 1


def test_a_round_that_cannot_be_charged_is_not_trained(datalist, tmp_path):
    filter_ = DPSGD(0.5, 0.01)
    trainer, context = site_of(datalist, filter_, tmp_path)
    before = start_of(trainer)
    with pytest.raises(RefusalError, match="epsilon") as error:
        trainer.train_round(before, 0, 1)
    assert error.value.reason == "privacy"
    assert_same(before, start_of(trainer))
    for unknown in (None, replace(context, round_number=1)):
        filter_.before_task(unknown)
        with pytest.raises(RefusalError, match="cannot charge"):
            trainer.train_round(before, 0, 1)


def test_a_hook_that_leaves_an_epoch_unfinished_has_made_nothing(datalist):
    hook = PatientDPSGD(1.0, 1.0)
    trainer = make(datalist, hook)
    weights = start_of(trainer)
    hook.before_round(trainer, weights, 0)
    hook.after_round(trainer, weights, 0)
    assert hook.finished == -1


# ----------------------------------------------------------------------- refusals


def test_no_other_hook_may_see_the_data(datalist):
    trainer = make(datalist, PatientDPSGD(1.0, 1.0), FedProx(0.1))
    with pytest.raises(ConfigurationError, match=r"executor.hooks is .*FedProx.*must be empty: with DP-SGD"):
        trainer.train_round(start_of(trainer), 0, 1)


def test_normalisation_over_a_batch_is_refused(datalist):
    """No network of the registry has it; one that did would mix cases before any gradient is clipped."""
    trainer = make(datalist, PatientDPSGD(1.0, 1.0))
    weights = start_of(trainer)
    trainer.network.add_module("mixing", torch.nn.BatchNorm3d(4, affine=False, track_running_stats=False))
    with pytest.raises(ConfigurationError, match=r"network.norm is 'batch'.*mixes patients"):
        trainer.train_round(weights, 0, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("place", range(CASES))
def test_a_case_that_is_not_finite_counts_as_zero_and_spoils_no_other(datalist, place, batch_size):
    """Its batch mates too: to refuse, or to lose them, would let one patient move more than his clip."""
    norm = 1e-2
    hook = PatientDPSGD(norm, 0.0)
    trainer = make(datalist, hook, batch_size=batch_size)
    worst = [classes for batch in make(datalist, hook).batches(0, 0) for classes in batch["classes"]][place]
    plain = trainer.loss

    def spoilt(logits, classes):
        # Infinite weight on the case: its own gradient is infinite, and 0 times infinity beside it is no number.
        broken = len(classes) == 1 and torch.equal(classes[0], worst)
        return plain(logits, classes) * (math.inf if broken else 1)

    trainer.loss = spoilt
    update = trainer.train_round(start_of(trainer), 0, 1).update
    rows = clipped(case_gradients(datalist), norm)
    assert hook.finished == 0
    expected = rows.sum(0) - rows[place]
    np.testing.assert_allclose(-flat(update).astype(float) * CASES, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((clip, 1.0), "clip") for clip in (0, -1, "1", None, True, math.nan, math.inf)]
    + [((1.0, noise), "noise_multiplier") for noise in (-1, "1", None, True, math.nan, math.inf)],
)
@pytest.mark.parametrize("kind", [PatientDPSGD, DPSGD])
def test_wrong_arguments_are_refused_by_name(kind, arguments, named):
    with pytest.raises(ConfigurationError, match=rf"^(DPSGD\.)?{named} is .* but must be"):
        kind(*arguments)


def test_the_filter_has_noise():
    """Without any the hook is plain descent; the filter would call it private."""
    with pytest.raises(ConfigurationError, match=r"^DPSGD\.noise_multiplier is 0"):
        DPSGD(1.0, 0)
    with pytest.raises(ConfigurationError, match=r"^delta is 1"):
        DPSGD(1.0, 1.0, delta=1)
