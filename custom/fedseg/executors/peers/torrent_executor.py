"""The executor of a site in BrainTorrent: it merges newer models of its peers with its own, and trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import FRESH, HELD, KEEP, MODEL_NAME, OFFERS, PEER_TIMEOUT, PEERS, START, TURN
from fedseg.contract.shapes import update_shapes
from fedseg.errors import RefusalError
from fedseg.evaluation.cross_site import LAST
from fedseg.executors.peers.exchange import Merge, PeerExchange, after_update
from fedseg.executors.peers.peer_executor import PeerExecutor, initial_model
from fedseg.files.digest import model_digest
from fedseg.files.names import SITE
from fedseg.filters.restore import restore
from fedseg.messages.job import job_plan, report_fields
from fedseg.messages.updates import read_update
from fedseg.models.model_file import initial_weights
from fedseg.networks.weights import Arrays
from fedseg.site.peer_files import MergedModel, PeerFiles
from fedseg.site.peer_versions import PeerVersions
from fedseg.site.round_files import DEFAULT_KEEP
from fedseg.workflows.run.record import LAST_MODEL


class BrainTorrentExecutor(PeerExecutor):
    """Trains at one site of BrainTorrent, whose server sees no model.

    The task ``train`` asks this site to take its turn as initiator. It brings no weights, but the digests of all sites'
    own models that count: this site asks its peers for their versions, takes the models that are newer than what it
    merged before, merges them with its own, and trains. What comes of it is its new own model.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """See ``SegmentationExecutor``."""
        super().__init__(hooks)
        self._merge: Merge | None = None
        self._plan: Plan | None = None
        self._fields: Mapping[str, Any] = {}

    @property
    def exchange(self) -> PeerExchange:
        """See ``peers``."""
        assert isinstance(self.peers, PeerExchange)
        return self.peers

    def _open(self, plan: Plan, site: str, fl_ctx: FLContext) -> PeerExchange:
        start, files = initial_weights(plan, initial_model(fl_ctx)), PeerFiles(self.session.folder)
        peers = PeerExchange(site, self.session.run_id, self.post, files, start)
        self.watch(peers, fl_ctx)
        return peers

    def received(self, content: Any, meta: Mapping[str, Any], fl_ctx: FLContext) -> Arrays:
        """The merged model from which a turn trains; or the own model of a site, to be scored."""
        self._task, self._merge = meta, None
        self._plan, self._fields = job_plan(fl_ctx), report_fields(fl_ctx)
        seconds = float(meta.get(PEER_TIMEOUT, 0))
        if OFFERS not in meta:
            return self._to_score(str(meta.get(HELD)), seconds, fl_ctx)
        offers = _read_offers(meta[OFFERS])
        own, versions = self._own(offers)
        digests = {site: digest for site, (digest, _) in offers.items()}
        self._merge = merge = self.exchange.merge(own, versions, digests, seconds)
        return merge.weights

    def _own(self, offers: Mapping[str, tuple[str, int]]) -> tuple[MergedModel | None, PeerVersions]:
        """This site's own model that counts, and its versions; where it is lost, and may be, the version alone."""
        site = self.exchange.site
        if site not in offers:
            raise RefusalError("plan", "The task does not name this site's own model.")
        digest, version = offers[site]
        try:
            return self.exchange.own(digest)
        except RefusalError:
            if not self._task.get(FRESH):
                raise
            self.session.record.lost()
            return None, PeerVersions(site, version)

    def _to_score(self, digest: str, seconds: float, fl_ctx: FLContext) -> Arrays:
        """The own model of this site, or of the one that the task names."""
        exchange, holders = self.exchange, [str(site) for site in self._task.get(PEERS) or ()]
        if holders and holders != [exchange.site]:
            return exchange.fetch(holders[0], digest, seconds)
        own, _ = exchange.own(digest)
        found, number = (dict(exchange.start), -1) if own is None else (exchange.ordered(own.weights), own.round)
        if self._task.get(MODEL_NAME) == LAST:
            self.write_own(LAST_MODEL, job_plan(fl_ctx), found, number, fl_ctx)
        return found

    def _keep(self, number: int, update: DXO) -> None:
        merge, plan, meta = self._merge, self._plan, self._task
        if merge is None or plan is None:
            raise RefusalError("state", "The update is of no turn of this site.")
        sent = DXO(DataKind.WEIGHT_DIFF, data=dict(update.data), meta=dict(update.meta)).to_shareable()
        dense = restore(read_update(sent, self._fields), update_shapes(plan))
        cases, versions = dense.report.num_samples, merge.versions.trained()
        self.session.record.merged(number, meta, model_digest(merge.weights), merge.updates)
        exchange, start, keep = self.exchange, str(meta.get(START)), int(meta.get(KEEP, DEFAULT_KEEP))
        exchange.files.go_back(number, start)
        current = _read_offers(meta[OFFERS])[exchange.site][0]
        exchange.files.keep({current}, keep + 1 if keep else 0)
        digest = exchange.keep_own(number, start, after_update(merge.weights, dense.arrays), versions, cases)
        update.meta[TURN] = {
            "received": model_digest(merge.weights),
            "digest": digest,
            "version": versions.own,
            "taken": dict(merge.taken),
            "missing": {site: self._tellable(text, plan) for site, text in merge.missing.items()},
            "bytes": {site: list(pair) for site, pair in merge.bytes.items()},
        }
        self._merge = None


def _read_offers(content: Any) -> dict[str, tuple[str, int]]:
    """Digest and version of each site's own model, as the server names them.

    Raises:
        RefusalError: it is something else (reason ``plan``).
    """
    try:
        found = {str(site): (str(digest), int(version)) for site, digest, version in content}
    except (TypeError, ValueError):
        found = {}
    if not found or not all(SITE.fits(site) for site in found):
        raise RefusalError("plan", "The task does not say which models count.")
    return found
