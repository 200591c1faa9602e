"""Bytes and time of encrypted aggregation, beside FLARE's stock homomorphic encryption, in one run.

    python benchmarks/encryption_cost.py [--repetitions 5] [--sites 4]

Four sites' updates of a residual encoder-decoder with 4.7 million parameters (BraTS: four channels, three regions) are
weighted, encrypted, added and decrypted. Stock is what FLARE's own HE recipe runs: ``HEModelEncryptor``,
``HEInTimeAccumulateWeightedAggregator`` and ``HEModelDecryptor`` with the context of its ``HEBuilder`` (CKKS, degree
8192, [60, 40, 40]). Its times are those of these components alone; ours hold serialising and reading the ciphertexts
too, which every update needs on its way. Bytes are those of serialised ciphertexts, the stock's without the context
that FLARE adds to each tensor. All runs in one thread, one way after the other in every repetition.
Seconds are the processor's, of the fastest repetition, since whatever else the machine does can only add to them.
"""

import argparse
import contextlib
import io
import logging
import time

import numpy as np
import tenseal as ts
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

from fedseg.networks.registry import ResidualSegmentation
from fedseg.networks.weights import Arrays, get_weights, is_averaged
from fedseg.privacy.encryption.ciphertexts import CiphertextSum, read_ciphertexts
from fedseg.privacy.encryption.context import EncryptionContext, make_contexts, public_context, secret_context
from fedseg.privacy.encryption.encrypt_update import blocks_of, decrypt_update, encrypt_update
from fedseg.privacy.encryption.fixed_point import MODES
from fedseg.privacy.encryption.sum_tag import SumTerms

NETWORK = ResidualSegmentation(init_filters=16)
Result = tuple[list[float], float, Arrays]


def make_updates(sites: int) -> list[Arrays]:
    """Random numbers of the size and spread of updates."""
    like = {name: value for name, value in get_weights(NETWORK.build(4, 3, (64, 64, 64))).items() if is_averaged(value)}
    generators = [np.random.default_rng(site) for site in range(sites)]
    return [{n: g.normal(0, 1e-3, v.shape).astype(np.float32) for n, v in like.items()} for g in generators]


def clock(times: list[float], start: float) -> float:
    """Note the time since ``start``, and start anew."""
    times.append(time.process_time() - start)
    return time.process_time()


def run_fedseg(
    updates: list[Arrays], steps: list[int], mode: str, secret: EncryptionContext, public: EncryptionContext
) -> Result:
    """Seconds of encryption, addition and decryption; bytes per parameter; the mean."""
    weights = {f"site-{number}": step / sum(steps) for number, step in enumerate(steps)}
    scale = max(float(np.abs(value).max()) for update in updates for value in update.values())
    terms = SumTerms("run", "model", weights, scale, mode)
    count = sum(value.size for value in updates[0].values())
    times: list[float] = []
    start = time.process_time()
    sent = [
        encrypt_update(update, site, f"drawn by {site}", terms, secret).to_arrays()
        for update, site in zip(updates, weights, strict=True)
    ]
    start = clock(times, start)
    total = CiphertextSum(blocks_of(count, terms.point(public), public), public)
    for arrays in sent:
        total.add(read_ciphertexts(arrays))
    result = total.result()
    start = clock(times, start)
    mean = decrypt_update(result, updates[0], {site: f"drawn by {site}" for site in weights}, terms, secret)
    clock(times, start)
    return times, sum(array.nbytes for array in sent[0].values()) / count, mean


def run_stock(updates: list[Arrays], steps: list[int], context: ts.Context) -> Result:
    """The same for FLARE's components."""
    shapes = {name: value.shape for name, value in updates[0].items()}
    encryptor, decryptor = HEModelEncryptor(), HEModelDecryptor()
    encryptor.tenseal_context = decryptor.tenseal_context = context
    encryptor.encrypt_layers = [True]
    aggregator = HEInTimeAccumulateWeightedAggregator()
    server, peer = FLContext(), FLContext()
    peer.set_prop(ReservedKey.IDENTITY_NAME, "server")
    server.set_peer_context(peer)
    server.set_prop(AppConstants.CURRENT_ROUND, 0)
    aggregator.handle_event(EventType.START_RUN, server)
    times: list[float] = []
    sent = []
    start = time.process_time()
    for update, step in zip(updates, steps, strict=True):
        dxo = DXO(DataKind.WEIGHT_DIFF, data=dict(update), meta={MetaKey.NUM_STEPS_CURRENT_ROUND: step})
        sent.append(encryptor.process_dxo(dxo, dxo.to_shareable(), server).to_shareable())
    start = clock(times, start)
    for site, shareable in enumerate(sent):
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: f"site-{site}"})
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, 0)
        if not aggregator.accept(shareable, server):
            raise RuntimeError("FLARE's aggregator did not accept an update.")
    result = aggregator.aggregate(server)
    start = clock(times, start)
    mean = decryptor.process_dxo(from_shareable(result), result, server).data
    clock(times, start)
    size = sum(len(vector.serialize()) for vector in from_shareable(sent[0]).data.values())
    count = sum(value.size for value in updates[0].values())
    return times, size / count, {name: np.reshape(mean[name], shapes[name]) for name in shapes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4, help="updates to add")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the stock components miss an engine for their events
    updates = make_updates(arguments.sites)
    steps = [10 * (number + 1) for number in range(arguments.sites)]
    truth = {
        name: sum(step * update[name].astype(np.float64) for step, update in zip(steps, updates, strict=True))
        / sum(steps)
        for name in updates[0]
    }
    largest = max(float(np.abs(value).max()) for update in updates for value in update.values())
    secret, public = (read(part) for read, part in zip((secret_context, public_context), make_contexts(), strict=True))
    builder = HEBuilder()
    builder.initialize(None, None)
    stock = ts.context_from(builder.get_serialized_context(is_client=True), n_threads=1)
    ways = {mode: lambda mode=mode: run_fedseg(updates, steps, mode, secret, public) for mode in MODES}
    ways["stock"] = lambda: run_stock(updates, steps, stock)
    results: dict[str, list[Result]] = {name: [] for name in ways}
    for _ in range(arguments.repetitions):
        for name, way in ways.items():
            # TenSEAL warns on stdout of vectors that are longer than a ciphertext, as the stock's are.
            with contextlib.redirect_stdout(io.StringIO()):
                results[name].append(way())
    count = sum(value.size for value in updates[0].values())
    print(f"{arguments.sites} sites, {count} parameters in {len(updates[0])} arrays; ours {secret.parameters}:")
    print(f"{secret.parameters.security_bits}-bit security, at most {secret.parameters.max_sites} sites")
    print()
    print("| way | bytes a parameter | encrypt (s) | add (s) | decrypt (s) | all (s) | stock / all | largest error |")
    print("|---|---|---|---|---|---|---|---|")
    whole = {name: min(sum(times) for times, _, _ in runs) for name, runs in results.items()}
    for name, runs in results.items():
        parts = min((times for times, _, _ in runs), key=sum)
        error = max(float(np.abs(runs[0][2][key] - truth[key]).max()) for key in truth) / largest
        shown = " | ".join(f"{part:.2f}" for part in (*parts, whole[name], whole["stock"] / whole[name]))
        print(f"| {name} | {runs[0][1]:.2f} | {shown} | {error:.1e} |")


if __name__ == "__main__":
    main()
