"""Training at one site: rounds of local epochs from given weights, and scoring of given weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Datalist
from fedseg.errors import AbortedError, ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, difference, get_weights, set_weights
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedseg.randomness import derive_seed, generator
from fedseg.site.state import SiteState
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.tasks.segmentation.metrics import ScoredCase, score_case
from fedseg.training.cache import CaseCache
from fedseg.training.hooks import TrainingHook
from fedseg.training.inference import choose_device, infer_logits, segment
from fedseg.training.optimisation import autocast, check_loss, check_norm, new_optimizer, set_rate
from fedseg.training.patches import PatchDataset, Sample, collate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundResult:
    """What a round of local training gave.

    Attributes:
        update: new minus received weights, floating-point arrays only.
        num_samples: training cases of the site.
        num_steps: optimizer steps of the round.
        train_loss: mean loss over the steps of the round; the segmentation loss alone, without what hooks add.
        seconds: duration.
        extras: arrays of the hooks that travel with the update.
        weights: the site's own weights after the round.
    """

    update: Arrays
    num_samples: int
    num_steps: int
    train_loss: float
    seconds: float
    extras: Arrays
    weights: Arrays


class SiteTrainer:
    """One site's cases, network and optimizer. Knows nothing of other sites or of FLARE."""

    def __init__(
        self,
        plan: Plan,
        site: str,
        datalist: Datalist,
        state: SiteState | None = None,
        *,
        device: str = "auto",
        cache_folder: Path | None = None,
        hooks: Sequence[TrainingHook] = (),
        private: Collection[str] = (),
        frozen: Collection[str] = (),
        simulated: bool = False,
        aborted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Build the network and the (still empty) caches.

        Args:
            plan: task, network and settings.
            site: name of the site; part of every seed.
            datalist: the site's cases.
            state: where the optimizer is kept between rounds; None keeps it in this object only.
            device: a torch device, or ``auto`` for the first GPU if there is one.
            cache_folder: for ``cache: disk``.
            hooks: what a method adds to local training.
            private: names of the network's arrays that are the site's own: see ``personal``.
            frozen: names of the parameters that training does not change.
            simulated: whether noise that protects follows from the seed, so that a run can be repeated.
            aborted: asked before every step and window; True ends the work with ``AbortedError``.

        Raises:
            ConfigurationError: a hook cannot work with this plan.
        """
        self.plan, self.site, self.datalist, self.state = plan, site, datalist, state
        self.settings, self.task, self.hooks, self.aborted = plan.training, plan.task, tuple(hooks), aborted
        for hook in self.hooks:
            hook.check_plan(plan)
        torch.set_num_threads(self.settings.threads)
        self.device = choose_device(device)
        self.network = plan.build_network()
        # Convolutions run up to a fifth faster in this layout; the weights' names and values are the same.
        self.network.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        if not any(p.requires_grad for p in self.network.parameters()):
            raise ConfigurationError("frozen", len(frozen), "fewer than all parameters of the network")
        self.loss = SegmentationLoss(self.task, self.settings.dice_weight, self.settings.batch_dice)
        # A hook may put another loss in the place of `loss`; scores stay comparable between rounds and methods.
        self._scoring_loss = self.loss
        folder = cache_folder if self.settings.cache == "disk" else None
        self.training_cases = CaseCache(self.task, datalist.training, True, folder)
        self._scored = {s: CaseCache(self.task, datalist.split(s), False, folder) for s in ("validation", "test")}
        self.optimizer = new_optimizer(self.settings, self.network.parameters())
        self.private, self.simulated = frozenset(private), simulated
        self._own: Arrays = {}
        # What the FLARE side knows of the task at hand; hooks of filters need it to charge what they release.
        self.context: Any = None
        self.received_extras: Arrays = {}
        self.totals: dict[str, float] = {}
        self.total_rounds = 0

    def noise_source(self, round_number: int, epoch: int) -> NoiseSource:
        """Where a hook gets noise that protects patients."""
        return SeededNoise(self.plan.seed, self.site, round_number, epoch, "noise") if self.simulated else SecureNoise()

    def statistics(self) -> dict[str, float]:
        """What the hooks want added up over all sites before the first round."""
        return {name: value for hook in self.hooks for name, value in hook.statistics(self).items()}

    def personal(self, weights: Arrays, round_number: int | None = None) -> Arrays:
        """The model that this site uses: ``weights`` with the site's own private arrays in their place.

        Args:
            weights: the global model.
            round_number: the round that starts from it; None takes what the site has after its last finished round.
                Before its first round the private arrays are the global model's.

        Raises:
            RefusalError: the site's state cannot be read (``state``).
        """
        if not self.private:
            return weights
        own = self._own
        if self.state is not None:
            saved = self.state.load(2**31 if round_number is None else round_number)
            own = {} if saved is None else {n: saved["network"][n].cpu().numpy() for n in self.private}
        return {name: own.get(name, value) if name in self.private else value for name, value in weights.items()}

    def train_round(
        self,
        weights: Arrays,
        round_number: int,
        total_rounds: int,
        extras: Arrays | None = None,
        totals: Mapping[str, float] | None = None,
    ) -> RoundResult:
        """Train ``local_epochs`` from the given weights.

        Args:
            weights: the global model.
            round_number: from 0.
            total_rounds: rounds of the whole job; the learning rate's schedule spans them.
            extras: further arrays that the server sent, for the hooks.
            totals: sums of the sites' ``statistics``, for the hooks.

        Raises:
            RefusalError: the weights do not fit (``weights``), there are no training cases (``data``) or the loss
                became non-finite (``loss``).
            AbortedError: ``aborted`` said so; the saved state is that of the round before.
        """
        start = time.perf_counter()
        if not len(self.training_cases):
            raise RefusalError("data", "This site has no training cases.")
        set_weights(self.network, weights)
        self.received_extras, self.totals = dict(extras or {}), dict(totals or {})
        self.total_rounds = total_rounds
        self._restore(round_number)
        for hook in self.hooks:
            hook.before_round(self, weights, round_number)
        losses = self._train_epochs(round_number, total_rounds)
        for hook in self.hooks:
            hook.after_round(self, weights, round_number)
        own = get_weights(self.network)
        self._own = {name: own[name] for name in self.private}
        update = difference(own, weights)
        extra = {name: array for hook in self.hooks for name, array in hook.extra_arrays(self).items()}
        if self.state is not None:
            hooks = [hook.state() for hook in self.hooks]
            kept = {"optimizer": self.optimizer.state_dict(), "network": self.network.state_dict(), "hooks": hooks}
            self.state.save(round_number, kept)
        mean = sum(losses) / len(losses)
        seconds = time.perf_counter() - start
        return RoundResult(update, len(self.training_cases), len(losses), mean, seconds, extra, own)

    def validate(self, weights: Arrays, split: str = "validation", distances: bool = False) -> list[ScoredCase]:
        """Score weights on every case of a split.

        Args:
            weights: the model.
            split: ``validation`` or ``test``.
            distances: also HD95, which takes longer.

        Raises:
            RefusalError: the weights do not fit.
            AbortedError: ``aborted`` said so.
        """
        set_weights(self.network, weights)
        self.network.eval()
        return [self._score(self._scored[split], i, distances) for i in range(len(self._scored[split]))]

    def _score(self, cases: CaseCache, index: int, distances: bool) -> ScoredCase:
        case = cases[index]
        if case.classes is None or case.reference is None:
            raise RefusalError("data", "A case that is to be scored has no label.")
        overlap = self.settings.overlap
        with self.autocast():
            logits = infer_logits(self.network, self.task, case.image, overlap, self.device, self._check_abort)
        with torch.inference_mode():
            loss = float(self._scoring_loss(logits, case.classes[None]))
        predicted = segment(self.task, case, logits)
        spacing = case.original.spacing
        score = score_case(self.task, predicted, case.reference, spacing, self.settings.empty, distances)
        return ScoredCase(case.id, loss, score)

    def _train_epochs(self, round_number: int, total_rounds: int) -> list[float]:
        """Local epochs of ``self.network`` with ``self.optimizer``; the loss of every step."""
        self.network.train()
        losses: list[float] = []
        epochs = self.settings.local_epochs
        steps = epochs * -(-len(self.training_cases) // self.settings.batch_size)
        with torch.random.fork_rng(devices=[]):
            # Dropout is the one draw that comes from torch's own generator.
            torch.manual_seed(derive_seed(self.plan.seed, self.site, round_number, "network"))
            for epoch in range(epochs):
                for batch in self.batches(round_number, epoch):
                    self._check_abort()
                    set_rate(self.optimizer, self.settings, (round_number + len(losses) / steps) / total_rounds)
                    losses.append(self._step(batch))
        return losses

    def batches(self, round_number: int, epoch: int) -> Iterator[Sample]:
        """The epoch's batches: every case once, in an order and with patches that follow from the seed."""
        where = (self.plan.seed, self.site, round_number, epoch)
        order = generator(*where, "order").permutation(len(self.training_cases)).tolist()
        items = [(index, derive_seed(*where, "patch", position)) for position, index in enumerate(order)]
        size = self.settings.batch_size
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        dataset = PatchDataset(self.task, self.training_cases, self.settings.augmentation)
        return iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate))

    def _step(self, batch: Sample) -> float:
        images = batch["image"].to(self.device, memory_format=torch.channels_last_3d)
        classes = batch["classes"].to(self.device)
        for hook in self.hooks:
            hook.before_step(self, images, classes)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.network(images)
        loss = self.loss(logits.float(), classes)
        segmentation = float(loss.detach())
        for hook in self.hooks:
            extra = hook.loss(self, images, logits, classes)
            loss = loss if extra is None else loss + extra
        own = [hook for hook in self.hooks if hook.makes_gradients]
        if not own:
            check_loss(loss)
        if not any(hook.backward(self, images, logits, classes) for hook in own):
            loss.backward()
        for hook in self.hooks:
            hook.after_backward(self)
        check_norm(nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip))
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step(self)
        return segmentation

    def _restore(self, round_number: int) -> None:
        """Optimizer and hooks as this site's last finished round left them, or fresh ones."""
        saved = self.state.load(round_number) if self.state is not None else None
        if self.settings.reset_optimizer or self.state is not None:
            self.optimizer = new_optimizer(self.settings, self.network.parameters())
        if saved is not None and not self.settings.reset_optimizer:
            self.optimizer.load_state_dict(saved["optimizer"])
        if self.state is not None:
            for position, hook in enumerate(self.hooks):
                hook.load_state(saved["hooks"][position] if saved is not None else None)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which the network runs forward, here and in hooks that run it too."""
        return autocast(self.settings, self.device)

    def _check_abort(self) -> None:
        if self.aborted():
            raise AbortedError("The work was aborted.")
