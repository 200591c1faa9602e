"""One model that is carried over one site or several, without a federation: each visit is a round of local training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays, apply_difference, get_weights
from fedseg.tasks.objective import MEAN
from fedseg.training.patience import Watch
from fedseg.training.site_round import mean_loss, scores_by_output
from fedseg.training.trainer import SiteTrainer

Course = Sequence[tuple[str, int]]
"""Visits in order: the site, and the number of the round there, from 0."""


@dataclass(frozen=True)
class Visit:
    """A round at a site.

    Attributes:
        site: where.
        round: its number there, from 0.
        num_samples: training cases that were seen, each pass counted.
        num_steps: optimizer steps.
        train_loss: mean over the steps; None where no step was taught by a label.
        score: the primary score of the received model on the site's validation cases, the mean over outputs; None
            where it was not asked for or no case defines it.
        loss: likewise the mean loss.
    """

    site: str
    round: int
    num_samples: int
    num_steps: int
    train_loss: float | None
    score: float | None
    loss: float | None


@dataclass
class Carried:
    """A carried model and its visits.

    Attributes:
        weights: after the last visit.
        visits: in order; with patience without those that were not needed any more.
    """

    weights: Arrays
    visits: list[Visit] = field(default_factory=list)


def one_site(site: str, rounds: int) -> list[tuple[str, int]]:
    """All rounds at one site.

    >>> one_site("a", 2)
    [('a', 0), ('a', 1)]
    """
    return [(site, number) for number in range(rounds)]


def incremental(sites: Sequence[str], rounds: int) -> list[tuple[str, int]]:
    """All rounds at one site, then all at the next (institutional incremental learning).

    >>> incremental(["a", "b"], 2)
    [('a', 0), ('a', 1), ('b', 0), ('b', 1)]
    """
    return [visit for site in sites for visit in one_site(site, rounds)]


def cyclic(sites: Sequence[str], rounds: int) -> list[tuple[str, int]]:
    """In each round one visit to each site (cyclic institutional incremental learning).

    >>> cyclic(["a", "b"], 2)
    [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    """
    return [(site, number) for number in range(rounds) for site in sites]


def train_carried(
    trainers: Mapping[str, SiteTrainer],
    course: Course,
    total_rounds: int,
    *,
    scored: bool = False,
    patience: int | None = None,
    on_visit: Callable[[int], None] = lambda done: None,
    start: Arrays | None = None,
) -> Carried:
    """Carry one model over the visits of a course.

    Args:
        trainers: of the sites of the course, all of one plan.
        course: the visits, see ``one_site``, ``incremental`` and ``cyclic``.
        total_rounds: rounds that the learning rate's schedule spans at each site.
        scored: whether every received model is scored on the site's validation cases.
        patience: visits in a row at a site without a better score after which the model leaves it as it was at its
            best there; None makes all visits.
        on_visit: called with the number of visits that lie behind.
        start: weights to start from; None for the plan's seeded network.

    Raises:
        ConfigurationError: with patience, a site has no validation case by which a model could be better.
        RefusalError: as of ``SiteTrainer.train_round``.
    """
    carried = Carried(get_weights(trainers[course[0][0]].network) if start is None else start)
    watch: _Watch | None = None
    for done, (site, number) in enumerate(course):
        trainer = trainers[site]
        if patience is not None and (watch is None or watch.trainer is not trainer):
            carried.weights = watch.best(carried.weights) if watch else carried.weights
            watch = _Watch(trainer, patience)
        if watch and watch.tired:
            continue
        score, loss = _judged(trainer, carried.weights) if scored or watch else (None, None)
        if watch and watch.sees(score, carried.weights):
            continue
        result = trainer.train_round(carried.weights, number, total_rounds)
        carried.weights = apply_difference(carried.weights, result.update)
        seen = result.num_samples * trainer.settings.local_epochs * trainer.settings.patches_per_case
        carried.visits.append(Visit(site, number, seen, result.num_steps, result.train_loss, score, loss))
        on_visit(done + 1)
    carried.weights = watch.best(carried.weights) if watch else carried.weights
    return carried


def _judged(trainer: SiteTrainer, weights: Arrays) -> tuple[float | None, float | None]:
    cases = trainer.validate(weights)
    return scores_by_output(trainer.objective, cases)[MEAN], mean_loss(cases)


class _Watch(Watch):
    """See ``Watch``; at the site of a trainer."""

    def __init__(self, trainer: SiteTrainer, patience: int) -> None:
        if not trainer.datalist.validation:
            raise ConfigurationError("patience", patience, f"left out, since {trainer.site} has no validation case")
        super().__init__(trainer.objective.primary, patience)
        self.trainer = trainer

    def best(self, weights: Arrays) -> Arrays:
        """The best of all models seen here, of which this is the last."""
        if not self.tired:
            self.sees(_judged(self.trainer, weights)[0], weights)
        return self.weights
