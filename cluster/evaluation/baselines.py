"""Fits the classical baselines on the float features of a code table: random hyperplanes, PCA-sign, PCA-ITQ per length.

Knows nothing of Ray and of how the baselines are evaluated.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cibhash.baselines import LinearHash, fit_itq, fit_pca_sign, fit_random_hyperplanes
from cluster.code_tables import features_of, read_part
from cluster.evaluation.methods import ITQ, PCA_SIGN, RANDOM_HYPERPLANES
from cluster.evaluation.plan import Table
from cluster.evaluation.scoring import Series

MAX_FIT_VALUES = 2**27
"""Float32 values of the features that a fit sees at most (512 MiB); above, rows are sampled."""


def num_fit_rows(table: Table, limit: int = MAX_FIT_VALUES) -> int:
    """Rows that a fit on this table uses."""
    return min(table.rows, max(1, limit // table.manifest.features))


def pca_lengths(table: Table, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths that PCA-sign and PCA-ITQ can reach: not more bits than there are directions in the features."""
    return tuple(bits for bits in lengths if bits <= min(table.manifest.features, num_fit_rows(table)))


def fit_features(table: Table, seed: int, limit: int = MAX_FIT_VALUES) -> npt.NDArray[np.float32]:
    """Features to fit on, all rows or a seeded sample of them, in the order of the table.

    Returns:
        float32 (M, D), M = `num_fit_rows(table, limit)`.
    """
    kept = np.arange(table.rows)
    if (count := num_fit_rows(table, limit)) < table.rows:
        kept = np.sort(np.random.default_rng(seed).choice(table.rows, count, replace=False))
    taken, start = [], 0
    for part in table.parts:
        first, last = np.searchsorted(kept, (start, start + part.rows))
        if last > first:
            taken.append(features_of(read_part(table.uri, part, ["features"]))[kept[first:last] - start])
        start += part.rows
    return np.concatenate(taken)


def fit_baselines(table: Table, lengths: tuple[int, ...], seed: int) -> dict[Series, LinearHash]:
    """Every baseline at every length that it can reach."""
    features = fit_features(table, seed)
    reached = pca_lengths(table, lengths)
    hashes = {Series(ITQ, bits): fit_itq(features, bits, seed=seed) for bits in reached}
    if reached:
        # The first directions of a longer code are those of a shorter one.
        widest = fit_pca_sign(features, max(reached))
        for bits in reached:
            hashes[Series(PCA_SIGN, bits)] = replace(widest, projection=widest.projection[:, :bits])
    return hashes | {
        Series(RANDOM_HYPERPLANES, bits): fit_random_hyperplanes(features, bits, seed=seed) for bits in lengths
    }
