"""Encrypted sums as an honest server makes them of what sites encrypt."""

from fedseg.privacy.encryption.ciphertexts import Ciphertexts, CiphertextSum
from fedseg.privacy.encryption.encrypt_update import encrypt_update
from fedseg.privacy.encryption.encrypted_model import EncryptedRound
from fedseg.privacy.encryption.sum_tag import SumTerms


def terms_of(weights, before="model", run="run", scale=10.0, mode="exact"):
    """What sites of these weights were told."""
    return SumTerms(run, before, dict(weights), scale, mode)


def encrypted(updates, terms, key):
    """What each site sends, and the number that it drew for it."""
    nonces = {site: f"{site}-{terms.before[:8]}" for site in updates}
    return {site: encrypt_update(updates[site], site, nonces[site], terms, key) for site in updates}, nonces


def add(parts, key) -> Ciphertexts:
    """The sum of some ciphertexts."""
    total = CiphertextSum(len(parts[0].blocks), key)
    for each in parts:
        total.add(each)
    return total.result()


def sum_of(updates, terms, key):
    """The sum of the updates of some sites, as the server adds it, and what the sites drew."""
    sent, nonces = encrypted(updates, terms, key)
    return add(list(sent.values()), key), nonces


def round_of(updates, terms, key):
    """The round that an honest server makes of these updates."""
    total, nonces = sum_of(updates, terms, key)
    return EncryptedRound(total, terms, nonces, key.key)
