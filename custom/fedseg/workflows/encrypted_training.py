"""The training loop of jobs in which the server sees no model and no update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import MetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import Aggregator
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import ENCRYPTED_FACTS, MODE, REASON, SCALE, START, UPLOAD
from fedseg.errors import ConfigurationError, FedsegError
from fedseg.filters.encrypt import ALGORITHM
from fedseg.models.encrypted_file import write_encrypted_file
from fedseg.models.note import replaced_note
from fedseg.privacy.encryption.context import KEY_NAME_FILE, EncryptionError, public_context
from fedseg.site.profile import server_context_file
from fedseg.workflows.encrypted.history import EncryptedHistory
from fedseg.workflows.encrypted.model import LEAST_SITES, EncryptedGlobalModel
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.site_dialogue import Take

_ABSENT = {
    "server_optimizer": "A server optimizer computes with the aggregated update, which the server has only encrypted.",
    "shared_arrays": "Further arrays of a method are not encrypted.",
    "keep_updates": "The server sees no updates.",
}


class EncryptedTraining(FederatedTraining):
    """Federated training with homomorphic encryption: each round has two steps.

    1. ``train``: the sites train, keep their updates, and report scalars, the largest value of their update among them.
    2. The rule makes weights from the reports, and ``upload`` tells the sites their weights and one scale for all.
       They answer with weighted ciphertexts, which the server adds as they arrive.
    3. A site that drops out in between is named and left out; the sites divide the sum by the weights that arrived.
       With fewer than two the round fails, since the sum of one is that site's update.

    A task carries the sums of those rounds that the site asked which is furthest behind has not seen, normally one. A
    site that answers that it lacks the model to which they add is asked once more, with the whole model. The models
    that the run leaves are encrypted; ``fedseg decrypt-model`` opens them at a site.
    """

    model: EncryptedGlobalModel

    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        mode: str = "compact",
        min_sites: int = LEAST_SITES,
        **arguments: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds, aggregator: see ``FederatedTraining``; the rule must weigh by reports alone.
            mode: ``compact``, in which a decrypted sum errs by at most 2e-4 of the round's largest update, or
                ``exact``, by at most 1e-6; see ``privacy.fixed_point``.
            min_sites: see ``FederatedTraining``; of the sites' ciphertexts at least two must arrive in each round.
            arguments: those of ``FederatedTraining``, but for ``server_optimizer``, ``shared_arrays`` and
                ``keep_updates``.
        """
        for name, why in _ABSENT.items():
            if arguments.get(name):
                shown = arguments[name] if isinstance(arguments[name], bool) else type(arguments[name]).__name__
                raise ConfigurationError(f"workflow.{name}", shown, "left out in an encrypted job", why)
        if type(min_sites) is int and min_sites < LEAST_SITES:
            why = "The sum of a single ciphertext is that site's update, which every other site could read."
            raise ConfigurationError(
                "workflow.min_sites", min_sites, f"a whole number of at least {LEAST_SITES} in an encrypted job", why
            )
        super().__init__(num_rounds, aggregator, min_sites=min_sites, **arguments)
        self.model = EncryptedGlobalModel(aggregator, mode)
        # Sites that said that they lack the model to which a task added: in all, and in answer to the last one.
        self._behind: set[str] = set()
        self._lacking: set[str] = set()
        self._brought = -1

    def open(self, plan: Plan, state: Path, initial: Path | None = None) -> None:
        file = self._context_file(state)
        try:
            self.model.context = public_context(file.read_bytes())
        except OSError:
            raise EncryptionError("The server has no encryption context; encrypted jobs need one.") from None
        self.model.history = EncryptedHistory(state / self.run_id)
        with suppress(OSError):
            self.model.key = file.with_name(KEY_NAME_FILE).read_text(encoding="ascii").strip()
        super().open(plan, state, initial)
        if not self.model.key:
            self.note("server", f"has no {KEY_NAME_FILE}: the first ciphertext of each round decides which key counts")

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "start": self.model.first_id}

    def _context_file(self, state: Path) -> Path:
        """Where the server's context lies."""
        return server_context_file(Path(self.engine.get_workspace().get_site_config_dir()), state)

    def _resume(self, number: int) -> None:
        super()._resume(number)
        if self.model.history.rounds()[-1:] != [number]:
            # Sites may have gone further, in the branch that is given up now.
            self._behind = {site for entry in self.rounds for site in entry["sites"]}
        self.model.go_on_after(number)

    # ---------------------------------------------------------------- a round

    def _collect(self, sites: Sequence[str]) -> None:
        message = self._bring(self._round - 1, sites)
        message.meta |= self._round_meta()
        message.current_round, message.total_rounds = self._round, self.num_rounds
        self.ask("train", message, sites, self.round_timeout, self._take_update)
        self._behind -= set(self.model.reports)
        for site in self.model.drop_outliers():
            self.note(site, "update left out: its largest value is over 1000 times the median of the other sites'")
        if len(self.model.reports) >= max(LEAST_SITES, min(self.min_sites, len(sites))):
            self._collect_ciphertexts()

    def _collect_ciphertexts(self) -> None:
        """The second step, with the sites that reported; bytes of both steps are counted."""
        before = dict(self._bytes)
        weights = self.model.weigh()
        meta = {SCALE: self.model.scale, MODE: self.model.mode, START: self.start_id}
        task = FLModel(metrics=weights, meta=meta, current_round=self._round, total_rounds=self.num_rounds)
        self.ask(UPLOAD, task, sorted(weights), self.round_timeout, self._take_ciphertexts)
        # An invited site's late answer to ``prepare`` may come meanwhile, and is none to this task.
        self._add_bytes(before, self._heard & set(weights))
        self.model.drop_missing()

    def ask(
        self, task: str, model: FLModel, sites: Sequence[str], timeout: int, take: Take | None = None
    ) -> dict[str, FLModel]:
        """Send a task; sites that lack the model to which it adds are asked once more, with the whole one."""
        self._lacking = set()
        answers = super().ask(task, model, sites, timeout, take)
        lacking = sorted(self._lacking & set(sites))
        if not lacking:
            return answers
        whole, before = self._bring(self._brought, lacking), dict(self._bytes)
        whole.meta = {**model.meta, **whole.meta}
        whole.current_round, whole.total_rounds = model.current_round, model.total_rounds
        answers = {**answers, **super().ask(task, whole, lacking, timeout, take)}
        self._add_bytes(before, self._heard & set(lacking))
        return answers

    def _add_bytes(self, before: Mapping[str, tuple[int, int]], sites: Iterable[str]) -> None:
        """Count what an earlier task of the same round took."""
        for site in sites:
            (up, down), (up_before, down_before) = self._bytes[site], before[site]
            self._bytes[site] = up + up_before, down + down_before

    def _take_ciphertexts(self, model: FLModel) -> bool:
        """Add a site's ciphertexts as they arrive; False leaves the site out of the round."""
        try:
            self.model.take_ciphertexts(model)
        except FedsegError as error:
            self.note(model.meta["client_name"], f"update left out: {error}")
            return False
        except Exception as error:
            # FLARE would swallow it, and with it the site's name.
            self.note(model.meta["client_name"], f"update left out: {type(error).__name__} while it was added")
            return False
        return True

    # ---------------------------------------------------------------- models

    def _digest_after(self, round_number: int) -> str:
        return self.model.id_after(round_number)

    def _bring(self, round_number: int, sites: Sequence[str]) -> FLModel:
        self._brought = round_number
        model = self.model.bring(round_number, [self._known(site) for site in sites])
        meta = {MetaKey.PROCESSED_ALGORITHM: ALGORITHM, ENCRYPTED_FACTS: model.facts()}
        return FLModel(params_type=ParamsType.FULL, params=model.to_arrays(), meta=meta)

    def _known(self, site: str) -> int | None:
        """The last round whose model a site has, by the last round in which it took part; None for nothing."""
        if site in self._behind:
            return None
        took_part = [entry["round"] for entry in self.rounds if site in entry["sites"]]
        return took_part[-1] - 1 if took_part else None

    def _store(self, name: str, round_number: int) -> str:
        """Write an encrypted model once the rounds are over; until then ``history`` holds all that it consists of."""
        file = f"{Path(name).stem}.encrypted"
        if self._round < 0:
            whole = self.model.bring(round_number, [])
            note = self.record.note(file, self.plan, whole.ids()[-1], round_number)
            path = self.record.folder / file
            with replaced_note(path, note):
                write_encrypted_file(path, self.plan, whole, round_number)
        return file

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        if result.get_header(REASON) == "history":
            self._behind.add(client_name)
            self._lacking.add(client_name)
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
