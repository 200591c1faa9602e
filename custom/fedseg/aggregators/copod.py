"""COPOD: outlier scores from empirical tail probabilities, without parameters (Li et al., ICDM 2020)."""

from __future__ import annotations

import numpy as np

_SYMMETRIC = 1e-9


def copod_scores(table: np.ndarray) -> np.ndarray:
    """How far out each row of a table lies; larger is more outlying.

    1. Per column the tail probabilities of each entry x: left P(X <= x) and right P(X >= x), as shares of the rows.
    2. Per entry -log of the tail on the side to which the column is skewed, of both tails if it is symmetric; but at
       least the mean of both.
    3. A row's score is the sum over its columns.

    The paper takes the largest of three sums over columns (left, right, skew-corrected). This takes the maximum entry
    by entry, as PyOD does, on which the published results of DOS rest.

    Args:
        table: observations in rows [N, D], finite.

    Returns:
        Scores [N] float64, 0 or more; they depend on the order of the values in each column and on the sign of its
        skewness only. A column of equal values adds 0 to all.
    """
    values = np.asarray(table, np.float64)
    left = -np.log((values[None] <= values[:, None]).mean(axis=1))
    right = -np.log((values[None] >= values[:, None]).mean(axis=1))
    side = _skewness_sign(values)
    skewed = np.where(side <= 0, left, 0.0) + np.where(side >= 0, right, 0.0)
    return np.maximum(skewed, (left + right) / 2).sum(axis=1)


def _skewness_sign(values: np.ndarray) -> np.ndarray:
    """-1, 0 or 1 per column; skewness within rounding of 0 is 0, so that it cannot toss a coin over the side."""
    deviations = values - values.mean(axis=0)
    spread = np.abs(deviations).max(axis=0)
    deviations = deviations / np.where(spread > 0, spread, 1.0)
    third, second = (deviations**3).mean(axis=0), (deviations**2).mean(axis=0)
    skewness = third / np.where(spread > 0, second, 1.0) ** 1.5
    return np.where(np.abs(skewness) > _SYMMETRIC, np.sign(skewness), 0.0)
