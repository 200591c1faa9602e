"""The evaluation across sites: models of the run, of its sites and from files, each scored at every site."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from torch import nn

from fedseg.contract.protocol import AS_IT_IS, MODEL_NAME, OWN_MODEL, SPLITS
from fedseg.contract.scores import PERSONAL as OF_METHOD
from fedseg.evaluation.cross_site import (
    AVERAGE,
    CROSS_SITE,
    FILE,
    LOCAL,
    PERSONAL,
    Cell,
    CrossSiteMatrix,
    MatrixModel,
    cell_of,
)
from fedseg.files.arrays import read_sealed, save_sealed
from fedseg.files.digest import model_digest
from fedseg.models.model_file import fitting_weights, read_model
from fedseg.networks.weights import Arrays, get_weights, set_weights
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import accept_scores
from fedseg.workflows.run.sites import Accept

Send = Callable[[Sequence[str], Mapping[str, Any], Accept], dict[str, FLModel]]
"""Has sites score a model; gets their names, what the task says besides, and what takes the answers."""
Known = Mapping[str, Mapping[str, Any]]
"""What sites have said of a model already, by site."""
_FOLDER = "cross-site"


def send_to_score(
    run: RunState,
    arrays: Arrays,
    sites: Sequence[str],
    meta: Mapping[str, Any],
    accept: Accept,
    as_it_is: bool = False,
) -> dict[str, FLModel]:
    """Have sites score a model whose arrays are at hand.

    Args:
        run: the run.
        arrays: of the model.
        sites, meta, accept: see ``RoundProtocol.score``.
        as_it_is: whether sites leave out the layers that they keep for themselves.
    """
    whole = {AS_IT_IS: True} if as_it_is else {}
    message = FLModel(params_type=ParamsType.FULL, params=arrays, meta={**meta, **whole})
    return run.sites.ask(AppConstants.TASK_VALIDATION, message, sites, run.settings.round_timeout, accept, "")


class CrossSiteScoring:
    """Scores one model after the other at all sites, those included that score only.

    A model that a site sends lies on the server's disk until all have scored it, and not longer. One with the very same
    arrays as an earlier one is not sent again. A site that fails or drops out is named, and its cells say so. What is
    known stands in the results after each model.

    Attributes:
        matrix: what is known so far.
    """

    def __init__(self, run: RunState, protocol: RoundProtocol, write: Callable[[], None]) -> None:
        """Begin with nothing.

        Args:
            run: whose models are scored.
            protocol: sends a model of the run to sites that score it.
            write: writes the results of the run; called after each model.
        """
        evaluators = sorted(run.participants.evaluators)
        self.matrix = CrossSiteMatrix(run.plan.objective, sorted(run.facts), evaluators)
        self._run, self._protocol, self._write = run, protocol, write
        self._folder = run.checkpoints.folder / _FOLDER

    @property
    def sites(self) -> list[str]:
        """Everybody who scores."""
        return [*self.matrix.sites, *self.matrix.evaluators]

    def add_global(self, kind: str, number: int, known: Known) -> None:
        """Add the model after a round, which some sites have scored already; the others score it now."""
        send = partial(self._protocol.score, self._run, number)
        self._score(MatrixModel(kind, digest=self._run.model.digest_after(number)), send, known)

    def add_own(self, known: Known) -> None:
        """Add the models that sites have in the place of a common one; each has scored its own already.

        Args:
            known: what each site said of its own model.
        """
        for site, digest in self._run.model.own_models().items():
            send = partial(self._protocol.score_own, self._run, site)
            said = {site: known[site]} if site in known else {}
            self._score(MatrixModel(LOCAL, site, digest), send, said)

    def add_average(self, arrays: Arrays, known: Known) -> None:
        """Add the average of the models of all rounds; see ``add_global``."""
        self._score_arrays(AVERAGE, "", arrays, known)

    def add_files(self, files: Mapping[str, Path]) -> None:
        """Add models that the job brings, by name: scored as they are, whatever layers sites keep for themselves."""
        for name, path in sorted(files.items()):
            arrays = fitting_weights(self._run.plan, path)
            if own := read_model(path).notes.get("own_arrays"):
                lacks = f"the file is a model without the layers that its sites kept for themselves ({len(own)} arrays)"
                self.add_row(MatrixModel(FILE, name, model_digest(arrays), missing=lacks), {})
            else:
                self._score_arrays(FILE, name, arrays, {})

    def add_row(self, model: MatrixModel, cells: Mapping[str, Cell]) -> None:
        """Add a model that was scored elsewhere."""
        self.matrix.add(model, cells)
        self._write()

    def add_sites(self, last: Known) -> None:
        """Add the sites' own last models, and the personal ones of those that keep one.

        Args:
            last: what sites said of the last model, and of their personal one beside it.
        """
        self._add_submitted(LOCAL, sorted(self.matrix.sites), {})
        keeping = {site: {site: part[OF_METHOD]} for site, part in last.items() if OF_METHOD in part}
        if keeping:
            self._add_submitted(PERSONAL, sorted(keeping), keeping)

    def to_dict(self) -> dict[str, Any]:
        """For the results of the run."""
        return {CROSS_SITE: self.matrix.to_dict()} if self.matrix.models else {}

    # ------------------------------------------------------------------ models of the sites

    def _add_submitted(self, kind: str, sites: Sequence[str], known: Mapping[str, Known]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            why = self._collect(kind, sites)
            for site in sites:
                path = self._folder / f"{site}.safetensors"
                if path.is_file():
                    self._score_arrays(kind, site, read_sealed(path)[1], known.get(site, {}))
                    path.unlink()
                else:
                    self.add_row(MatrixModel(kind, site, missing=why[site]), {})
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _collect(self, kind: str, sites: Sequence[str]) -> dict[str, str]:
        """Have sites send their models; gives why one did not."""
        run, before = self._run, len(self._run.events)
        meta = {OWN_MODEL: OF_METHOD if kind == PERSONAL else LOCAL, **run.kept_meta()}
        plan = run.personal if kind == PERSONAL and run.personal else run.plan
        task, accept = FLModel(metrics={"submit": 1.0}, meta=meta), partial(self._store, plan.build_network())
        timeout = run.settings.round_timeout
        run.sites.ask(AppConstants.TASK_SUBMIT_MODEL, task, sites, timeout, accept, "its model was left out")
        return self._reasons(sites, before)

    def _store(self, network: nn.Module, site: str, answer: FLModel) -> None:
        """Keep a site's model on disk once it fits the network.

        Raises:
            RefusalError: it does not (reason ``weights``).
        """
        arrays = {str(name): np.asarray(value) for name, value in (answer.params or {}).items()}
        set_weights(network, arrays)
        save_sealed(self._folder / f"{site}.safetensors", get_weights(network), {})

    # ------------------------------------------------------------------ scores

    def _score_arrays(self, kind: str, of: str, arrays: Arrays, known: Known) -> None:
        """Add a model whose arrays are at hand."""
        send = partial(send_to_score, self._run, arrays, as_it_is=kind == FILE)
        self._score(MatrixModel(kind, of, model_digest(arrays)), send, known)

    def _score(self, model: MatrixModel, send: Send, known: Known) -> None:
        """Add a row: what is known, and what the sites say that have not scored the model."""
        cells = {site: cell_of(part) for site, part in known.items()}
        # Sites score a model of the run with their own layers in it, and one from a file without.
        apart = model.kind == FILE and bool(self._run.record.own_arrays)
        twin = None if apart else self.matrix.twin(model.digest)
        if twin is not None:
            cells = self.matrix.cells[twin.name] | cells
            model = MatrixModel(model.kind, model.of, model.digest, same_as=twin.name)
        else:
            cells |= self._ask(model, send, [site for site in self.sites if site not in cells])
        self.matrix.add(model, cells)
        self._write()

    def _ask(self, model: MatrixModel, send: Send, sites: Sequence[str]) -> dict[str, Cell]:
        """Have sites score a model on the cases of their final split."""
        if not sites:
            return {}
        run, before = self._run, len(self._run.events)
        run.record.append("scoring", name=model.name, model=model.digest)
        run.record.event("evaluate", model=model.name, at=list(sites))
        meta = {SPLITS: ["final"], MODEL_NAME: model.name, **run.kept_meta()}
        answers = send(sites, meta, partial(accept_scores, run.plan.objective))
        why = self._reasons(sites, before)
        return {
            site: cell_of(answers[site].metrics["final"]) if site in answers else Cell(missing=why[site])
            for site in sites
        }

    def _reasons(self, sites: Sequence[str], before: int) -> dict[str, str]:
        """What was noted of each site since ``before`` events, or why nothing can be expected of it."""
        found = {site: self._run.sites.absence(site) or "did not answer" for site in sites}
        return found | {e["site"]: e["what"].rstrip(".") for e in self._run.events[before:] if e["site"] in found}
