"""The model of an encrypted run at the server: a plain start, and encrypted sums that lead on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg import allowed
from fedseg.aggregators.base import AggregationError, Aggregator, Draw
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.contract.combinations import SCALING, VALUES
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import ENCRYPTED_FACTS, STEPS
from fedseg.contract.update import Update, parse_steps
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.encrypt import ALGORITHM, EncryptUpdate
from fedseg.models.encrypted_file import write_encrypted_file
from fedseg.models.model_file import initial_weights
from fedseg.models.note import replaced_note
from fedseg.networks.weights import Arrays, is_averaged
from fedseg.privacy.encryption.ciphertexts import CiphertextSum, read_ciphertexts
from fedseg.privacy.encryption.context import KEY_NAME_FILE, EncryptionContext, EncryptionError, public_context
from fedseg.privacy.encryption.encrypt_update import blocks_of
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, EncryptedRound, first_id
from fedseg.privacy.encryption.fixed_point import MODES
from fedseg.privacy.encryption.sum_tag import LEAST_SITES, SumTerms
from fedseg.site.profile import server_context_file
from fedseg.workflows.encrypted.history import EncryptedHistory
from fedseg.workflows.run.checkpoint import CheckpointError, Checkpoints
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import Keep, RunModel, RunPlace
from fedseg.workflows.run.weighted_model import describe_rule

# One common scale for all sites costs the others as many of their digits as one site's largest value lies above theirs.
_FAR_ABOVE = 1000.0


class EncryptedRunModel(RunModel):
    """Accepts a round in two steps: reports, of which the rule makes weights, then weighted ciphertexts, which it adds.

    A site that reports but whose ciphertext does not arrive drops out of the round; the sites divide the decrypted sum
    by the weights that did arrive.

    A message carries the sums of those rounds that the site which is furthest behind has not seen, normally one.

    Attributes:
        mode: how exact the sums are, see ``fixed_point.MODES``.
        start_weights: those that the run starts from, which the server knows.
        scale: largest absolute value of the round's updates, by the sites' reports or as the job fixes it.
        context: the server's, without a key.
        key: short name of the sites' key, with which all ciphertexts must be made; where it is empty, the first
            ciphertext of a round decides.
        first_id: id of the model that the run starts from.
        sums: of the finished rounds.
    """

    context: EncryptionContext
    sums: EncryptedHistory
    start_weights: Arrays
    key: str = ""
    first_id: str = ""

    def __init__(self, aggregator: Aggregator, mode: str = "compact", scale: float | None = None) -> None:
        """Check that the rule weighs sites by their reports alone.

        Args:
            aggregator: the rule.
            mode: ``compact`` or ``exact``.
            scale: of every round's updates; None takes the largest value that a site reports.

        Raises:
            ConfigurationError: the rule looks at updates, or scales them; there is no such mode.
        """
        allowed.one_of("workflow.mode", mode, MODES)
        allowed.optional(allowed.number, "workflow.scale", scale, above=0)
        kind = type(aggregator)
        if not isinstance(aggregator, WeightedAggregator) or aggregator.needs & {VALUES, SCALING}:
            raise ConfigurationError(
                "workflow.aggregator",
                kind.__name__,
                "a rule that weighs sites by their reports alone",
                "The server of an encrypted run sees no updates; FedAvg and FedCostWAvg are such rules.",
            )
        super().__init__()
        self.rule, self.mode, self.components = aggregator, mode, (aggregator,)
        self.scale, self.fixed_scale = 1.0, scale
        self._terms: SumTerms | None = None
        self._sum: CiphertextSum | None = None
        # Of each site whose ciphertext is in the sum what it drew for it.
        self._nonces: dict[str, str] = {}
        self._key, self._id, self._next, self._run = "", "", 0, ""
        # For each site the round whose model it has.
        self._at_site: dict[str, int] = {}

    def check_plan(self, plan: Plan) -> None:
        self.rule.check_plan(plan)

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        """See ``RunModel``.

        Raises:
            EncryptionError: the server has no encryption context, or one with a key.
        """
        file = server_context_file(place.config, place.state)
        try:
            self.context = public_context(file.read_bytes())
        except OSError:
            raise EncryptionError("The server has no encryption context; encrypted jobs need one.") from None
        self.sums, self._run = EncryptedHistory(checkpoints.folder), checkpoints.folder.name
        with suppress(OSError):
            self.key = file.with_name(KEY_NAME_FILE).read_text(encoding="ascii").strip()
        if not self.key:
            self.remark = f"has no {KEY_NAME_FILE}: the first ciphertext of each round decides which key counts"
        self.check_plan(plan)
        self.start_weights = initial_weights(plan, place.initial)
        self._count = sum(value.size for value in self.start_weights.values() if is_averaged(value))
        self._id = self.first_id = first_id(self.start_weights)

    def describe(self) -> dict[str, Any]:
        return {**self.rule.describe(), "encryption": self.mode}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "start": self.first_id}

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self._terms, self._sum, self._nonces, self._key = None, None, {}, self.key

    def sites_drawn(self, draw: Draw) -> None:
        self.rule.draw = draw

    # ------------------------------------------------------------- reports, then ciphertexts

    def accept_update(self, site: str, update: Update) -> None:
        """Accept a site's report.

        Raises:
            RefusalError: the report says nothing of the scale, or arrays came with it, which in an encrypted job are to
                stay at the site until they are encrypted.
        """
        if update.arrays:
            raise RefusalError("privacy", "The site sent arrays that are not encrypted; they were dropped.")
        if update.report.largest is None and self.fixed_scale is None:
            raise RefusalError("report", "The site does not report the largest value of its update.")
        self.reports[site] = update.report
        self._at_site[site] = self._next - 1

    def drop_outliers(self) -> list[str]:
        """Forget the reports of sites whose largest value would blind the round, which needs three sites to tell.

        Returns:
            The sites whose value is more than 1000 times the median of the others'.
        """
        largest = {site: report.largest or 0.0 for site, report in self.reports.items()} if not self.fixed_scale else {}
        outliers = []
        for site in sorted(largest) if len(largest) >= 3 else ():
            usual = median(largest[other] for other in largest if other != site)
            if 0 < usual * _FAR_ABOVE < largest[site]:
                outliers.append(site)
        for site in outliers:
            del self.reports[site]
        return outliers

    def weigh(self) -> dict[str, float]:
        """Weights of the sites that reported; from now on only ciphertexts are accepted.

        Raises:
            AggregationError: no site reported, or the rule's weights are unusable.
            ConfigurationError: there are more sites than ciphertexts that can be added.
        """
        if not self.reports:
            raise AggregationError("No site reported; there is nothing to aggregate.")
        self.reports = {site: self.reports[site] for site in sorted(self.reports)}
        self.scale = self.fixed_scale or max(report.largest or 0.0 for report in self.reports.values()) or 1.0
        self.rule.last_scales, self.rule.last_notes = {}, {}
        weights = {site: float(weight) for site, weight in self.rule.round_weights(self.reports).items()}
        self._terms = SumTerms(self._run, self._id, weights, self.scale, self.mode)
        blocks = blocks_of(self._count, self._terms.point(self.context), self.context)
        self._sum = CiphertextSum(blocks, self.context)
        return weights

    def accept_ciphertexts(self, site: str, answer: FLModel) -> None:
        """Add a site's weighted, encrypted update.

        Raises:
            RefusalError: it is not encrypted, or in another way or with another key than those of the other sites.
        """
        steps = parse_steps(answer.meta.get(STEPS))
        if self._sum is None or self._terms is None or site not in self._terms.weights or site in self._nonces:
            raise RefusalError("privacy", "The site was not asked for ciphertexts.")
        if answer.meta.get(MetaKey.PROCESSED_ALGORITHM) != ALGORITHM or not steps:
            raise RefusalError("privacy", "The update is not encrypted; it was dropped.")
        facts = steps[-1]
        told = (facts["filter"], facts.get("mode"), facts.get("sites"))
        if told != (EncryptUpdate.__name__, self.mode, len(self._terms.weights)):
            raise RefusalError("privacy", f"The update was encrypted in another way ({told}) than the round's.")
        key = str(facts.get("key"))
        if self._key not in ("", key):
            raise RefusalError(
                "privacy", f"The update was encrypted with the key {key}, but the round's key is {self._key}."
            )
        if not (nonce := str(facts.get("nonce") or "")):
            raise RefusalError("privacy", "The update does not say which number it was encrypted with.")
        self._sum.add(read_ciphertexts(answer.params or {}))
        self._key, self._nonces[site], self.steps[site] = key, nonce, steps

    def drop_missing(self) -> None:
        """Forget the reports of sites whose ciphertexts did not arrive."""
        self.reports = {site: self.reports[site] for site in sorted(self._nonces)}

    def finish_round(self) -> None:
        """Store the round's sum.

        Raises:
            AggregationError: fewer than two ciphertexts with a weight arrived.
        """
        arrived, terms = sorted(self._nonces), self._terms
        counted = 0 if terms is None else terms.counted(arrived)
        if self._sum is None or terms is None or counted < LEAST_SITES:
            raise AggregationError(
                f"{counted} ciphertext(s) with a weight that counts arrived, but {LEAST_SITES} must: the sum of one is "
                "that site's update, which the other sites could read. The model of the round before is kept."
            )
        weight = terms.weight(arrived)
        self.rule.last_weights = {site: terms.weights[site] / weight for site in arrived}
        self.rule.last_notes |= {"scale": self.scale, "weight_of_sum": weight}
        added = EncryptedRound(self._sum.result(), terms, {site: self._nonces[site] for site in arrived}, self._key)
        self._id = self.sums.save(self._next, self._id, added)
        self._next += 1
        self._sum = None

    def describe_round(self) -> dict[str, Any]:
        return describe_rule(self, self.rule)

    # ------------------------------------------------------------- what is sent

    def training_message(self, sites: Sequence[str]) -> FLModel:
        return self.scoring_message(self._next - 1, sites)

    def scoring_message(self, number: int, sites: Sequence[str]) -> FLModel:
        model = self.model_after(number, [self._at_site.get(site) for site in sites])
        meta = {MetaKey.PROCESSED_ALGORITHM: ALGORITHM, ENCRYPTED_FACTS: model.facts()}
        return FLModel(params_type=ParamsType.FULL, params=model.to_arrays(), meta=meta)

    def forget_site(self, site: str) -> None:
        """A site has said that it lacks the model to which a message adds: its next one brings it all."""
        self._at_site.pop(site, None)

    def model_after(self, number: int, known: Iterable[int | None]) -> EncryptedModel:
        """The model after a round, in as many sums as the reader that is furthest behind needs.

        Args:
            number: of a finished round; -1 for the start.
            known: for each reader the round whose model it has (-1 for the start); None for nothing. From a later
                one nobody can go back, so that is nothing too.

        Raises:
            CheckpointError: a round is missing or damaged at the server.
        """
        known = list(known)
        usable = [has for has in known if has is not None and has <= number]
        whole = not known or len(usable) < len(known)
        base = -1 if whole else min(usable)
        added = tuple(self.sums.load(each) for each in range(base + 1, number + 1))
        model = EncryptedModel(self.digest_after(base), added, dict(self.start_weights) if whole else None)
        if model.ids()[-1] != self.digest_after(number):
            raise CheckpointError(f"An encrypted round from {base + 1} to {number} is damaged (its id differs).")
        return model

    # ------------------------------------------------------------- what is stored

    def digest_after(self, number: int) -> str:
        """Id of the model after a finished round; -1 for the start."""
        return self.first_id if number < 0 else self.sums.id_after(number)

    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        """Write an encrypted model once the rounds are over; until then ``sums`` holds all that it consists of."""
        file = f"{Path(name).stem}.encrypted"
        if final:
            whole = self.model_after(number, [])
            note = record.note(file, plan, whole.ids()[-1], number)
            with replaced_note(record.folder / file, note):
                write_encrypted_file(record.folder / file, plan, whole, number)
        return {"model": file}

    def history(self) -> dict[str, Any]:
        return {"rule": self.rule.history(), "at_site": self._at_site}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        """Continue after a finished round; later rounds, of a branch that is given up, are removed."""
        self.rule.restore(history["rule"])
        # Sites may have gone further in the branch that is given up.
        further = self.sums.rounds()[-1:] != [number]
        self._at_site = {} if further else dict(history["at_site"])
        self.sums.drop_after(number)
        self._id, self._next = self.digest_after(number), number + 1
