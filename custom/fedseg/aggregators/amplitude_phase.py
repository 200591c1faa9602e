"""PRR-FL's mean of amplitudes and of phases, each for itself (Chen et al., MICCAI 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedseg import allowed
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.spool.reader import SpoolReader
from fedseg.contract.combinations import COMPARED_UPDATES, EVERY_COORDINATE, OWN_MODELS
from fedseg.contract.report import SiteReport
from fedseg.networks.frequencies import from_spectrum, is_kernel, low_frequencies, spectrum
from fedseg.networks.weights import Arrays


class AmplitudePhaseAvg(FedAvg):
    """FedAvg, but for low frequencies of convolutions, whose amplitudes and phases are averaged apart.

    1. Weights p_j and the mean model, as in FedAvg.
    2. Of each kernel: the spectra F_j of the sites' models, A = sum_j p_j |F_j| and P = sum_j p_j arg F_j, with angles
       from -pi to pi.
    3. The low frequencies of the next model are A exp(i P), see ``networks.frequencies``; all else is the mean model.

    The mean of complex spectra is that of the weights, so FedAvg has it. This one is another: it is no mean of models,
    and not continuous, since angles near pi and near -pi, which are nearly equal, have a mean near 0. Where sites agree
    in their phases both are the same. At a frequency that is its own conjugate, as the mean of a kernel, the value is
    real: of A exp(i P) the real part counts.

    The spectrum is that of a site's model, which is the global model plus its update. So the rule needs the whole model
    of every site, as it is: noise in an update makes amplitudes larger, and does not average out. Memory holds one
    kernel and its frequencies at a time, however many sites there are.

    ``last_weights`` are the p_j.
    """

    needs = COMPARED_UPDATES | {EVERY_COORDINATE, OWN_MODELS}

    def __init__(self, share: float = 0.7, weight_by: str = "uniform") -> None:
        """Choose what is averaged in this way.

        Args:
            share: width of the window of low frequencies, from 0 (none: FedAvg, to the last bit) to 1 (all). ``PRRFL``
                at the sites takes no others up to the same ``share``.
            weight_by: as in ``FedAvg``; ``uniform`` as published.
        """
        super().__init__(weight_by)
        self.share = allowed.number("share", share, least=0, most=1)

    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        update = super().combine(reports)
        with self._spool.columns() as reader:
            for name, mean in update.items():
                low = low_frequencies(mean.shape, self.share) if is_kernel(mean) and mean.size else np.zeros(0, bool)
                if low.any():
                    update[name] = self._apart(reader, name, mean, low)
        return update

    def _apart(self, reader: SpoolReader, name: str, mean: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The update of one kernel.

        Args:
            reader: the updates of the round.
            name: of the kernel.
            mean: its mean update.
            low: its low frequencies.
        """
        received = self._received(name)
        sites = reader.sites_with(name)
        total = math.fsum(self.last_weights[site] for site in sites)
        amplitude, phase = np.zeros(int(low.sum())), np.zeros(int(low.sum()))
        for site in sites:
            part, found = self.last_weights[site] / total, _low_part(received + reader.read(site, name), low)
            amplitude += part * np.abs(found)
            phase += part * np.angle(found)
        change = np.zeros(low.shape, complex)
        change[low] = amplitude * np.exp(1j * phase) - _low_part(received + mean, low)
        return (mean + from_spectrum(change, mean.shape)).astype(mean.dtype)

    def _received(self, name: str) -> np.ndarray:
        """An array of the global model from which the updates of the round start, float64."""
        if name not in self.received:
            raise AggregationError(
                f"{type(self).__name__} needs the global model that sites received, which workflows of fedseg give to "
                "their rule; take FedAvg elsewhere."
            )
        return np.asarray(self.received[name], np.float64)


def _low_part(kernel: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The low frequencies of a kernel, as one row; those that are real have no rounding in their imaginary part."""
    found = spectrum(kernel)
    rows, columns = found.shape
    whole = kernel.shape[0] * kernel.shape[-1]
    for row in {0, rows // 2 if rows % 2 == 0 else 0}:
        for column in {0, columns - 1 if whole % 2 == 0 else 0}:
            # Else a negative number has the angle pi or -pi, as rounding will.
            found[row, column] = found[row, column].real
    return found[low]
