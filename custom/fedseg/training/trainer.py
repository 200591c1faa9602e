"""Training at one site: rounds of local epochs from given weights, and scoring of given weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedseg.contract.plan import Plan
from fedseg.contract.round_settings import RoundSettings, round_steps
from fedseg.contract.shapes import array_owners
from fedseg.data.datalist import Datalist
from fedseg.data.label_convention import with_convention
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, difference, get_weights, set_weights
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedseg.site.state import SiteState
from fedseg.tasks.objective import MEAN, ScoredCase
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import TrainingHook, check_hooks, personal_plan, replaces
from fedseg.training.inference import choose_device, decide_case, infer_logits, predict_values
from fedseg.training.kept_steps import KeptSteps
from fedseg.training.optimisation import place
from fedseg.training.patience import Watch


@dataclass(frozen=True)
class TrainerSetup:
    """What a site and its job bring to the training, beside plan and cases.

    Attributes:
        state: where optimizers and companions are kept between rounds; None keeps them in the trainer's objects only.
        device: a torch device, or ``auto`` for the first GPU if there is one.
        cache: folder for prepared cases, for ``cache: disk``.
        hooks: what a method adds to local training.
        private: names of the network's arrays that are the site's own: see ``SiteTrainer.own_model``.
        frozen: names of the parameters that training does not change.
        simulated: whether noise that protects follows from the seed, so that a run can be repeated.
        counts_patients: whether what the site tells of its cases are numbers of patients, see ``SiteTrainer.count``.
        alone: whether nobody else trains the network, as where all sites' cases are pooled: then it trains all arrays
            that parts keep for groups of sites, or for each site.
        aborted: asked before every step and window; True ends the work with ``AbortedError``.
    """

    state: SiteState | None = None
    device: str = "auto"
    cache: Path | None = None
    hooks: Sequence[TrainingHook] = ()
    private: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()
    simulated: bool = False
    counts_patients: bool = False
    alone: bool = False
    aborted: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class RoundResult:
    """What a round of local training gave.

    Attributes:
        update: new minus received weights, floating-point arrays that the site shares in this round only.
        num_samples: training cases of the site.
        num_steps: optimizer steps of the round.
        train_loss: mean loss over the steps of the round, without what hooks add; None of a round without a step.
        seconds: duration.
        shared: arrays of the hooks that travel with the update.
        weights: the site's own weights after the round.
    """

    update: Arrays
    num_samples: int
    num_steps: int
    train_loss: float | None
    seconds: float
    shared: Arrays
    weights: Arrays


def check_groups(plan: Plan, site: str) -> None:
    """Refuse to train a network of which a part knows groups of sites, and not this one.

    Raises:
        RefusalError: names the part (reason ``task``).
    """
    if lacking := [part.name for part in plan.network.parts if not part.takes(site)]:
        why = f"The network's part {lacking[0]} names groups of sites, and this site is in none of them."
        raise RefusalError("task", f"{why} Name it in network.parts.")


class SiteTrainer(KeptSteps):
    """One site's cases, network and optimizer. Knows nothing of other sites or of FLARE."""

    def __init__(self, plan: Plan, site: str, datalist: Datalist, setup: TrainerSetup | None = None) -> None:
        """Build the network and the (still empty) caches.

        Args:
            plan: task, network and settings.
            site: name of the site; part of every seed.
            datalist: the site's cases.
            setup: see there; None is a trainer without hooks that keeps nothing on disk.

        Raises:
            ConfigurationError: a hook cannot work with this plan, or no parameter is left to train.
        """
        setup = setup or TrainerSetup()
        check_hooks(setup.hooks, plan)
        self.private, self.simulated = setup.private, setup.simulated
        self._counts_patients = setup.counts_patients
        # Fewest cases of which a mean of scores is told; a policy may change during a run.
        self.least_scored: int | None = None
        owners, self._alone, self._frozen = array_owners(plan), setup.alone, setup.frozen
        self._owners = {name: owner.alone for name, owner in owners.items()} if setup.alone else owners
        self.private |= {name for name, owner in self._owners.items() if owner.private}
        network = plan.build_network()
        folder = setup.cache if plan.training.cache == "disk" else None
        task = with_convention(plan.task, datalist.convention)
        datalist = datalist.scorable if any(hook.weak_labels for hook in setup.hooks) else datalist.labelled
        cases = CaseCache(task, datalist.labelled.training, True, folder)
        self._scored = {s: CaseCache(task, datalist.split(s), False, folder) for s in ("validation", "test")}
        device = choose_device(setup.device)
        super().__init__(plan, site, datalist, cases, network, setup.hooks, device, setup.aborted, setup.state)
        weak = tuple(case for case in datalist.training if case.supervision.weak)
        self._labelled, self.weak_cases = cases, CaseCache(task, weak, True, folder)
        self._freeze(0)
        if not any(p.requires_grad for p in network.parameters()):
            raise ConfigurationError("frozen", len(setup.frozen), "fewer than all parameters of the network")
        # A hook may put another loss in the place of `loss`; scores stay comparable between rounds and methods.
        self._scoring_loss = self.loss
        self._personal_network: nn.Module | None = None
        self._own: Arrays = {}
        self._patience: int | None = None
        self._steps_made = 0
        self.received_shared_arrays, self.totals = {}, {}

    def noise_source(self, round_number: int, epoch: int) -> NoiseSource:
        """Where a hook gets noise that protects patients."""
        return SeededNoise(self.plan.seed, self.site, round_number, epoch, "noise") if self.simulated else SecureNoise()

    def count(self, split: str) -> int:
        """What the site tells of the size of a split: cases, or in a job with a formal guarantee patients.

        Data sets that differ in what one patient is have equal numbers of patients, but not of cases.
        """
        return self.datalist.patients(split) if self._counts_patients else len(self.datalist.split(split))

    def counted_steps(self) -> int:
        """Steps of the present round as they follow from ``count``; without a guarantee those that are made."""
        if self._patience is not None:
            return self._steps_made
        return round_steps(self.settings, self.count("training"), self.epoch_cases)

    def statistics(self) -> dict[str, float]:
        """What the hooks want added up over all sites before the first round."""
        return {name: value for hook in self.hooks for name, value in hook.statistics(self).items()}

    def arrays_before_rounds(self) -> Arrays:
        """Arrays of the hooks that the server needs before the first round."""
        return {name: array for hook in self.hooks for name, array in hook.arrays_before_rounds(self).items()}

    def withheld(self, round_number: int) -> frozenset[str]:
        """Names of the arrays that parts of the network keep out of the update of a round."""
        return frozenset(n for n, owner in self._owners.items() if not owner.sent(self.site, round_number))

    def own_model(self, weights: Arrays, round_number: int | None = None) -> Arrays:
        """The model that this site uses: ``weights`` with the site's own private arrays in their place.

        Args:
            weights: the global model.
            round_number: the round that starts from it; None uses what the site has after its last finished round.
                Before its first round the private arrays are the global model's.

        Raises:
            RefusalError: the site's state cannot be read (``state``).
        """
        if not self.private:
            return weights
        own = self._own
        if self.state is not None:
            saved = self.state.load_or_lose(2**31 if round_number is None else round_number)
            own = {} if saved is None else {n: saved["network"][n].cpu().numpy() for n in self.private}
        return {name: own.get(name, value) if name in self.private else value for name, value in weights.items()}

    def personal_model(self) -> Arrays | None:
        """The model that a method keeps beside the global one, after this site's last finished round; None without one.

        Raises:
            RefusalError: the site's state cannot be read (``state``).
        """
        for hook in self.hooks:
            if replaces(hook, "personal_model"):
                self.restore(2**31)
                return hook.personal_model(self)
        return None

    def train_round(
        self,
        weights: Arrays,
        round_number: int,
        total_rounds: int,
        shared: Arrays | None = None,
        totals: Mapping[str, float] | None = None,
        settings: RoundSettings | None = None,
    ) -> RoundResult:
        """Train the local epochs of a round from the given weights.

        Args:
            weights: the global model.
            round_number: from 0.
            total_rounds: rounds of the whole job; the learning rate's schedule spans them.
            shared: arrays that the server sent beside the weights, for the hooks.
            totals: sums of the sites' ``statistics``, for the hooks.
            settings: what holds in this round in place of the plan's settings.

        Raises:
            RefusalError: the weights do not fit (``weights``), there are no training cases (``data``) or the loss
                became non-finite (``loss``).
            AbortedError: ``aborted`` said so; the saved state is that of the round before.
        """
        start = time.perf_counter()
        self.received_shared_arrays, self.totals = dict(shared or {}), dict(totals or {})
        fixed = self._begin(weights, round_number, total_rounds, settings or RoundSettings())
        for hook in self.hooks:
            hook.before_round(self, weights, round_number)
        losses = self.train_epochs() if self._patience is None else self._train_patiently(weights, self._patience)
        self._steps_made = len(losses)
        for hook in self.hooks:
            hook.after_round(self, weights, round_number)
        own = get_weights(self.network) | {name: weights[name] for name in fixed}
        self._own = {name: own[name] for name in self.private}
        withheld = self.withheld(round_number)
        update = {name: value for name, value in difference(own, weights).items() if name not in withheld}
        sent = {name: array for hook in self.hooks for name, array in hook.shared_arrays(self).items()}
        self.save(round_number)
        mean = sum(losses) / len(losses) if losses else None
        seconds = time.perf_counter() - start
        return RoundResult(update, len(self.training_cases), len(losses), mean, seconds, sent, own)

    def _begin(self, weights: Arrays, round_number: int, total_rounds: int, settings: RoundSettings) -> frozenset[str]:
        """Load weights and what the last round left; returns the names of the arrays that are fixed in this round."""
        self.training_cases = self._labelled
        if not len(self.training_cases) and not len(self.weak_cases):
            raise RefusalError("data", "This site has no training cases.")
        if not self._alone:
            check_groups(self.plan, self.site)
        set_weights(self.network, weights)
        self.received, self.settings = weights, settings.applied(self.plan.training)
        self.epoch_cases, self.own_schedule = settings.epoch_cases, bool(settings.own_schedule)
        self._patience = settings.patience
        if self._patience is not None and not self.datalist.validation:
            raise RefusalError("data", "This site has no validation case by which it could know when to stop.")
        self.round_number, self.total_rounds = round_number, total_rounds
        fixed = self._freeze(round_number)
        self.restore(round_number)
        return fixed

    def _train_patiently(self, weights: Arrays, patience: int) -> list[float]:
        """Local epochs until the site's own validation cases see nothing better; the network ends at its best there."""
        watch = Watch(self.objective.primary, patience)
        watch.sees(self._mean_score(weights), weights)

        def is_enough() -> bool:
            now = get_weights(self.network)
            tired = watch.sees(self._mean_score(now), now)
            self.network.train()
            return tired

        losses = self.train_epochs(is_enough)
        set_weights(self.network, watch.weights)
        return losses

    def _mean_score(self, weights: Arrays) -> float | None:
        """The primary score of weights on the site's validation cases, the mean over outputs."""
        cases = [case.score for case in self.validate(weights)]
        mean: float | None = self.objective.summarise(cases)[self.objective.primary.name][MEAN]
        return mean

    def validate(self, weights: Arrays, split: str = "validation", distances: bool = False) -> list[ScoredCase]:
        """Score weights on every case of a split.

        Args:
            weights: the model; of the plan's network, or of that of the method's personal models.
            split: ``validation`` or ``test``.
            distances: also the scores that take longer: all but Dice and volumes.

        Raises:
            RefusalError: the weights do not fit.
            AbortedError: ``aborted`` said so.
        """
        network = self._network_of(weights).eval()
        set_weights(network, weights)
        return [self._score(network, self._scored[split], i, distances) for i in range(len(self._scored[split]))]

    def _network_of(self, weights: Arrays) -> nn.Module:
        """The network in training, or where weights have the names of the method's personal models, one of these."""
        plan = personal_plan(self.plan, self.hooks)
        if plan is self.plan or set(weights) == set(self.network.state_dict()):
            return self.network
        if self._personal_network is None:
            self._personal_network = place(plan.build_network(), self.device)
        return self._personal_network

    def _score(self, network: nn.Module, cases: CaseCache, index: int, distances: bool) -> ScoredCase:
        case = cases[index]
        if case.reference is None and self.objective.needs_label:
            raise RefusalError("data", "A case that is to be scored has no label.")
        overlap = self.settings.overlap
        with self.autocast():
            logits = infer_logits(network, self.task, case.image, overlap, self.device, self.check_abort)
        with torch.inference_mode():
            loss = float(self._scoring_loss(logits, self.objective.targets(case.batch())))
        values = predict_values(self.objective, case, logits)
        predicted, settings = decide_case(self.objective, case, values), self.settings.to_dict()
        spacing = case.original.spacing
        score = self.objective.score_drawn(case.drawn, predicted, case.reference, spacing, settings, distances, values)
        return ScoredCase(case.id, loss, score, cases.cases[index].patient)

    def _freeze(self, round_number: int) -> frozenset[str]:
        """Let training change what this site trains in a round; returns the names that parts keep as they are."""
        fixed = frozenset(n for n, owner in self._owners.items() if not owner.trained(self.site, round_number))
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in self._frozen | fixed)
        return fixed
