"""Servers that keep a site's ciphertext and would have it read by the other sites: workflows that a job names."""

import pickle
from dataclasses import replace
from pathlib import Path

from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.protocol import ENCRYPTED_FACTS
from fedseg.filters.encrypt import ALGORITHM
from fedseg.privacy.encryption.ciphertexts import read_ciphertexts
from fedseg.workflows.encrypted_training import EncryptedTraining
from fedseg.workflows.federated_training import FederatedTraining

VICTIM = "beta"


def message(model):
    meta = {MetaKey.PROCESSED_ALGORITHM: ALGORITHM, ENCRYPTED_FACTS: model.facts()}
    return FLModel(params_type=ParamsType.FULL, params=model.to_arrays(), meta=meta)


class Cheating(EncryptedTraining):
    """Follows the protocol in the first round, in which it keeps the victim's ciphertext, and cheats in the second.

    ``how``: ``never``; ``lone``: the ciphertext stands for the sum of all; ``own``: for the sum of the one site that it
    is of; ``earlier``: in the third round the sum of the first stands for that of the second; a file's name: the model
    that another run has left there, under the name of this run. Where a ``file`` is named, the model after the first
    round is left there as it was sent, with all that whoever knows nothing needs to read it.
    """

    def __init__(self, num_rounds: int, how: str = "never", file: str = "", **settings):
        super().__init__(num_rounds, FedAvg(), **settings)
        self.how, self.file, self.kept = how, Path(file), None
        self.model.accept_ciphertexts, self.accept = self.take, self.model.accept_ciphertexts
        self.model.model_after, self.honest = self.sent, self.model.model_after

    def take(self, site, answer):
        if site == VICTIM and self.kept is None:
            self.kept = read_ciphertexts(answer.params)
        self.accept(site, answer)

    def sent(self, number, known):
        model = self.honest(number, known)
        if number == 0:
            model = self.stolen(model)
        if number >= 0 and self.file.name:
            self.file.write_bytes(pickle.dumps(self.stolen(self.honest(0, []))))
        if number == 1 and self.how == "earlier":
            first = self.honest(0, []).rounds[0].ciphertexts
            model = replace(model, rounds=(*model.rounds[:-1], replace(model.rounds[-1], ciphertexts=first)))
        if number == 0 and self.how.startswith("/"):
            stolen = pickle.loads(Path(self.how).read_bytes())
            model = replace(stolen, rounds=tuple(renamed(each, model.rounds[0].terms.run) for each in stolen.rounds))
        return model

    def stolen(self, model):
        """The model after the first round, with the victim's ciphertext in the place of the sum where that is asked."""
        if self.how not in ("lone", "own"):
            return model
        last = replace(model.rounds[-1], ciphertexts=self.kept)
        own = {VICTIM: last.nonces[VICTIM]}
        return replace(model, rounds=(replace(last, nonces=own if self.how == "own" else last.nonces),))


def renamed(added, run):
    return replace(added, terms=replace(added.terms, run=run))


class Reading(FederatedTraining):
    """Sends the model that an encrypted run has left in ``file``, and would get updates that are not encrypted."""

    def __init__(self, num_rounds: int, file: str, **settings):
        super().__init__(num_rounds, FedAvg(), **settings)
        self.model.training_message = lambda sites: message(pickle.loads(Path(file).read_bytes()))
