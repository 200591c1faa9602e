"""Homomorphic encryption as filters: updates leave a site as ciphertext, and models come to it as ciphertext.

Both read the site's key (see ``SiteProfile.encryption_context``) when they need it; it stays in no message and no log.
"""

from __future__ import annotations

import logging
import re
import secrets

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.combinations import SCALING, VALUES
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import ENCRYPTED_FACTS, MODE, MODEL_ID, RUN_ID, SCALE, UPLOAD, WEIGHTS
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import ENCRYPTED, Stage, Update
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.filters.base import UpdateFilter, result_filters
from fedseg.filters.context import SiteContext
from fedseg.messages.job import site_profile
from fedseg.messages.replies import refuse, why
from fedseg.messages.updates import PREFIX
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError, secret_context
from fedseg.privacy.encryption.encrypt_update import encrypt_update
from fedseg.privacy.encryption.encrypted_model import read_encrypted_model
from fedseg.privacy.encryption.fixed_point import MODES
from fedseg.privacy.encryption.sum_tag import LEAST_SITES, ForgedSumError, SumTerms
from fedseg.site.decrypted_model import load_decrypted, save_decrypted
from fedseg.site.forged_sums import check_forged, note_forged
from fedseg.site.policy import OPEN
from fedseg.site.profile import SiteProfile
from fedseg.site.state import check_run_id

logger = logging.getLogger(__name__)
ALGORITHM = PREFIX + ENCRYPTED
_MECHANISM = "homomorphic encryption (BFV)"


class EncryptUpdate(UpdateFilter):
    """Weights the update and encrypts it, all arrays in one vector (task ``upload``).

    The weights of all sites, scale and mode come with the task: a site can know neither its weight nor the scale
    before all sites have told their reports. A value beyond the scale is refused, never cut off. What is encrypted
    holds for one sum only: that of these sites, with these weights, in this run, for the model that the site trained
    from; see ``privacy.encryption.sum_tag``.

    It hides the update from the server and from everybody else without the sites' key; the other sites have that key,
    and the scalars beside the update are not encrypted. See docs/explanation/encryption.md.
    """

    meaning = "the server sees ciphertext only; the sites share the key"
    stage = Stage.ENCRYPT
    withholds = frozenset({VALUES, SCALING})
    gives = ENCRYPTED
    words = frozenset({_MECHANISM, *MODES})

    def tells(self, text: str, plan: Plan) -> bool:
        # The key's short name, and the number that was drawn for a ciphertext.
        return super().tells(text, plan) or re.fullmatch("(?:[0-9a-f]{16}){1,2}", text) is not None

    def apply(self, update: Update, context: SiteContext) -> Update:
        key = site_key(context.profile)
        missing = set(update_shapes(context.plan)) ^ set(update.arrays)
        if missing:
            raise RefusalError(
                "privacy", f"{len(missing)} array(s) of the network are kept back, so the update cannot be encrypted."
            )
        terms, nonce = _terms(context), secrets.token_hex(16)
        terms.check_sites(terms.weights, least_sites(context.profile))
        try:
            point, ciphertexts = terms.point(key), encrypt_update(update.arrays, context.site, nonce, terms, key)
        except ConfigurationError as error:
            raise RefusalError("privacy", str(error)) from None
        count = sum(value.size for value in update.arrays.values())
        step = self.step(
            mechanism=_MECHANISM,
            mode=terms.mode,
            sites=point.sites,
            key=key.key,
            nonce=nonce,
            error=point.error,
            security_bits=key.parameters.security_bits,
            bytes_per_parameter=ciphertexts.nbytes / count,
        )
        return update.after(step, ciphertexts.to_arrays(), ENCRYPTED)


class DecryptModel(Filter):
    """Makes the encrypted model of a task (``train``, ``validate``) a plain one, for the executor and nobody else.

    The plain model of the last round in which the site trained is kept in the site's folder of the run, so that a task
    needs to carry no more than what was added since. A site that lacks the model to which a task adds says so, and gets
    everything from the start in a second task. A task whose model is not encrypted is refused.

    It decrypts only in jobs that let updates out encrypted, and only sums of the updates that enough sites encrypted
    for this run and this model: a server that has kept a ciphertext cannot have it read. After some messages that were
    made up, the site decrypts nothing under this key any more, since each could tell something of the key.
    """

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """FLARE's side; what fails is left to the executor, which answers with the reason."""
        try:
            return self._decrypt(shareable, fl_ctx)
        except RefusalError as error:
            reason, text = error.reason, str(error)
        except FedsegError as error:
            logger.error("%s", error)
            reason, text = "privacy", "The model could not be decrypted; the site's own log says why."
        except Exception as error:
            logger.exception("The model of a task could not be decrypted")
            text = f"An unexpected {type(error).__name__} stopped the decryption; see the site's log."
            reason, text = "privacy", why(error, text)
        return refuse(shareable, reason, text, ReturnCode.TASK_DATA_FILTER_ERROR, headers=True)

    def _decrypt(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        try:
            dxo = from_shareable(shareable)
        except ValueError:
            raise RefusalError("weights", "The task carries no model.") from None
        if dxo.meta.get(MetaKey.PROCESSED_ALGORITHM) != ALGORITHM:
            raise RefusalError("privacy", "The job decrypts models, but the task carries one that is not encrypted.")
        if not encrypts(fl_ctx):
            raise RefusalError("privacy", "The job decrypts models, but lets updates out that are not encrypted.")
        run_id = str(dxo.meta.get(RUN_ID) or fl_ctx.get_job_id())
        check_run_id(run_id)
        profile = site_profile(fl_ctx)
        key, folder = site_key(profile), profile.state / run_id
        check_forged(profile.state, key.key)
        arrays = {str(name): np.asarray(value) for name, value in dxo.data.items()}
        model = read_encrypted_model(arrays, dxo.meta.get(ENCRYPTED_FACTS))
        try:
            identity, weights = model.decrypt(key, run_id, load_decrypted(folder), least_sites(profile))
        except ForgedSumError:
            note_forged(profile.state, key.key)
            raise
        if fl_ctx.get_prop(FLContextKey.TASK_NAME) == AppConstants.TASK_TRAIN:
            save_decrypted(folder, identity, weights)
        meta = {k: v for k, v in dxo.meta.items() if k not in (MetaKey.PROCESSED_ALGORITHM, ENCRYPTED_FACTS)}
        meta[MODEL_ID] = identity
        return DXO(DataKind.WEIGHTS, data=weights, meta=meta).update_shareable(shareable)


def encrypts(fl_ctx: FLContext) -> bool:
    """Whether the job encrypts its updates, so that none may leave but through the task ``upload``."""
    return any(isinstance(each, EncryptUpdate) for each in result_filters(fl_ctx, UPLOAD))


def site_key(profile: SiteProfile) -> EncryptionContext:
    """The site's context with the secret key.

    Raises:
        RefusalError: it is missing, cannot be read, holds no key, or is below 128 bits of security (reason
            ``privacy``).
    """
    try:
        return secret_context(profile.encryption_context.read_bytes())
    except OSError as error:
        logger.error("The encryption context cannot be read: %s", error)
        raise RefusalError("privacy", "This site has no encryption context, which the job needs.") from None
    except EncryptionError as error:
        raise RefusalError("privacy", str(error)) from None


def least_sites(profile: SiteProfile) -> int:
    """Fewest sites of which this site helps to make, or reads, an encrypted sum."""
    return max(LEAST_SITES, (profile.policy or OPEN).min_sites or 0)


def _terms(context: SiteContext) -> SumTerms:
    """For which sum the update is to be encrypted."""
    meta = context.task_meta
    scale, mode, weights = meta.get(SCALE), meta.get(MODE), meta.get(WEIGHTS)
    numeric = not isinstance(scale, bool) and isinstance(scale, int | float)
    if not (numeric and isinstance(mode, str) and isinstance(weights, list)):
        raise RefusalError("privacy", "The task does not say how the update is to be encrypted.")
    return SumTerms(context.run_id, str(meta.get(MODEL_ID)), dict(weights), float(scale or 0), mode)
