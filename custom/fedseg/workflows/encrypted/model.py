"""The global model of an encrypted run at the server, which has its start and its sums, and never its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg import allowed
from fedseg.aggregators.base import AggregationError, Aggregator
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import STEPS
from fedseg.contract.report import SiteReport, parse_report
from fedseg.contract.update import parse_steps
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.encrypt import ALGORITHM, EncryptUpdate
from fedseg.networks.weights import Arrays, is_averaged
from fedseg.privacy.encryption.ciphertexts import CiphertextSum, read_ciphertexts
from fedseg.privacy.encryption.context import EncryptionContext
from fedseg.privacy.encryption.fixed_point import MODES, FixedPoint, choose_fields
from fedseg.privacy.encryption.model import EncryptedModel, EncryptedRound, first_id
from fedseg.privacy.encryption.update import blocks_of
from fedseg.workflows.encrypted.history import EncryptedHistory
from fedseg.workflows.run.checkpoint import CheckpointError
from fedseg.workflows.run.global_model import GlobalModel

# The sum of fewer ciphertexts is a site's own update, which every other site could read.
LEAST_SITES = 2
# One common scale for all sites costs the others as many of their digits as one site's largest value lies above theirs.
_FAR_ABOVE = 1000.0


class EncryptedGlobalModel(GlobalModel):
    """Takes a round in two steps: reports, from which the rule makes weights, then weighted ciphertexts, which it adds.

    ``weights`` are those of the start and stay so. A site that reports but whose ciphertext does not arrive drops out
    of the round; the sites divide the decrypted sum by the weights that did arrive.

    Attributes:
        mode: how exact the sums are, see ``fixed_point.MODES``.
        scale: largest absolute value of the round's updates, by the sites' reports.
        context: the server's, without a key; set before the first round.
        key: short name of the sites' key, with which all ciphertexts must be made; where it is empty, the first
            ciphertext of a round decides.
        first_id: id of the model that the run starts from.
        history: the finished rounds; set before the first round.
    """

    context: EncryptionContext
    history: EncryptedHistory
    key: str = ""
    first_id: str = ""

    def __init__(self, aggregator: Aggregator, mode: str = "compact") -> None:
        """Check that the rule weighs sites by their reports alone.

        Args:
            aggregator: the rule.
            mode: ``compact`` or ``exact``.

        Raises:
            ConfigurationError: the rule looks at updates, or scales them; there is no such mode.
        """
        allowed.one_of("workflow.mode", mode, MODES)
        kind = type(aggregator)
        if (
            not isinstance(aggregator, WeightedAggregator)
            or aggregator.needs_updates
            or kind.combine is not WeightedAggregator.combine
            or kind.site_scales is not WeightedAggregator.site_scales
        ):
            raise ConfigurationError(
                "workflow.aggregator",
                kind.__name__,
                "a rule that weighs sites by their reports alone",
                "The server of an encrypted run sees no updates; FedAvg and FedCostWAvg are such rules.",
            )
        super().__init__(aggregator)
        self.rule, self.mode = aggregator, mode
        self.scale = 1.0
        self._point: FixedPoint | None = None
        self._sum: CiphertextSum | None = None
        self._given: dict[str, float] = {}
        self._arrived: dict[str, float] = {}
        self._key, self._id, self._next = "", "", 0

    def open(self, plan: Plan, initial: Path | None = None) -> None:
        super().open(plan, initial)
        self._count = sum(value.size for value in self.weights.values() if is_averaged(value))
        self._id = self.first_id = first_id(self.weights)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "encryption": self.mode}

    def begin_round(self) -> None:
        super().begin_round()
        self._point, self._sum, self._given, self._arrived, self._key = None, None, {}, {}, self.key

    # ------------------------------------------------------------- reports, then ciphertexts

    def take(self, model: FLModel, keep: Callable[[str, Arrays], None] | None = None) -> SiteReport:
        """Take a site's report.

        Raises:
            RefusalError: the report is wrong or says nothing of the scale, or arrays came with it, which in an
                encrypted job are to stay at the site until they are encrypted.
        """
        report = parse_report(model.meta)
        if model.params:
            raise RefusalError("privacy", "The site sent arrays that are not encrypted; they were dropped.")
        if report.largest is None:
            raise RefusalError("report", "The site does not report the largest value of its update.")
        self.reports[model.meta["client_name"]] = report
        return report

    def drop_outliers(self) -> list[str]:
        """Forget the reports of sites whose largest value would blind the round, which needs three sites to tell.

        Returns:
            The sites whose value is more than 1000 times the median of the others'.
        """
        largest = {site: report.largest or 0.0 for site, report in self.reports.items()}
        outliers = []
        for site in sorted(largest) if len(largest) >= 3 else ():
            usual = median(largest[other] for other in largest if other != site)
            if 0 < usual * _FAR_ABOVE < largest[site]:
                outliers.append(site)
        for site in outliers:
            del self.reports[site]
        return outliers

    def weigh(self) -> dict[str, float]:
        """Weights of the sites that reported; from now on only ciphertexts are taken.

        Raises:
            AggregationError: no site reported, or the rule's weights are unusable.
            ConfigurationError: there are more sites than ciphertexts that can be added.
        """
        if not self.reports:
            raise AggregationError("No site reported; there is nothing to aggregate.")
        self.reports = {site: self.reports[site] for site in sorted(self.reports)}
        self.scale = max(report.largest or 0.0 for report in self.reports.values()) or 1.0
        parameters = self.context.parameters
        self._point = choose_fields(self.mode, len(self.reports), parameters.plain_modulus, parameters.max_sites)
        self._sum = CiphertextSum(blocks_of(self._count, self._point, self.context), self.context)
        self.rule.last_scales, self.rule.last_notes = {}, {}
        self._given = dict(self.rule.round_weights(self.reports))
        return self._given

    def take_ciphertexts(self, model: FLModel) -> None:
        """Add a site's weighted, encrypted update.

        Raises:
            RefusalError: it is not encrypted, or in another way or with another key than those of the other sites.
        """
        site, steps = model.meta["client_name"], parse_steps(model.meta.get(STEPS))
        if self._sum is None or site not in self._given or site in self._arrived:
            raise RefusalError("privacy", "The site was not asked for ciphertexts.")
        if model.meta.get(MetaKey.PROCESSED_ALGORITHM) != ALGORITHM or not steps:
            raise RefusalError("privacy", "The update is not encrypted; it was dropped.")
        facts = steps[-1]
        told = (facts["filter"], facts.get("mode"), facts.get("sites"))
        if told != (EncryptUpdate.__name__, self.mode, len(self._given)):
            raise RefusalError("privacy", f"The update was encrypted in another way ({told}) than the round's.")
        key = str(facts.get("key"))
        if self._key not in ("", key):
            raise RefusalError(
                "privacy", f"The update was encrypted with the key {key}, but the round's key is {self._key}."
            )
        self._sum.add(read_ciphertexts(model.params or {}))
        self._key, self._arrived[site], self.steps[site] = key, self._given[site], steps

    def drop_missing(self) -> None:
        """Forget the reports of sites whose ciphertexts did not arrive."""
        self.reports = {site: self.reports[site] for site in sorted(self._arrived)}

    def finish_round(self) -> None:
        """Store the round's sum.

        Raises:
            AggregationError: fewer than two ciphertexts with a weight arrived.
        """
        weight = sum(self._arrived[site] for site in sorted(self._arrived))
        counted = sum(value > 0 for value in self._arrived.values())
        if self._sum is None or counted < LEAST_SITES:
            raise AggregationError(
                f"{counted} ciphertext(s) with a weight arrived, but {LEAST_SITES} must: the sum of one is that site's "
                "update, which the other sites could read. The model of the round before is kept."
            )
        self.rule.last_weights = {site: self._arrived[site] / weight for site in sorted(self._arrived)}
        self.rule.last_notes |= {"scale": self.scale, "weight_of_sum": weight}
        added = EncryptedRound(self._sum.result(), weight, self.scale, len(self._given), self.mode, self._key)
        self._id = self.history.save(self._next, self._id, added)
        self._next += 1
        self._sum = None

    # ------------------------------------------------------------- what goes out, and what is stored

    def outgoing(self) -> Arrays:
        raise AggregationError("The server of an encrypted run has no weights to send.")

    def bring(self, round_number: int, known: Iterable[int | None]) -> EncryptedModel:
        """The model after a round, in as many sums as the reader that is furthest behind needs.

        Args:
            round_number: of a finished round; -1 for the start.
            known: for each reader the round whose model it has (-1 for the start); None for nothing. From a later
                one nobody can go back, so that is nothing too.

        Raises:
            CheckpointError: a round is missing or damaged at the server.
        """
        known = list(known)
        usable = [number for number in known if number is not None and number <= round_number]
        whole = not known or len(usable) < len(known)
        base = -1 if whole else min(usable)
        added = tuple(self.history.load(number) for number in range(base + 1, round_number + 1))
        model = EncryptedModel(self.id_after(base), added, dict(self.weights) if whole else None)
        if model.ids()[-1] != self.id_after(round_number):
            raise CheckpointError(f"An encrypted round from {base + 1} to {round_number} is damaged (its id differs).")
        return model

    def id_after(self, round_number: int) -> str:
        """Id of the model after a finished round; -1 for the start."""
        return self.first_id if round_number < 0 else self.history.id_after(round_number)

    def arrays(self) -> Arrays:
        """Nothing: what a run goes on from lies in ``history``."""
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        self.aggregator.restore(history)

    def go_on_after(self, round_number: int) -> None:
        """Continue after a finished round; later rounds, of a branch that is no longer followed, go away."""
        self.history.drop_after(round_number)
        self._id, self._next = self.id_after(round_number), round_number + 1
