"""Bootstrap over queries: means of resampled queries and 95 % intervals, paired over all that is measured.

Knows nothing of what the values are.
"""

import numpy as np
import numpy.typing as npt

from cluster.evaluation.results import Interval

RESAMPLES = 1000


def bootstrap_means(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Means over resampled queries; a row's are the same whatever the other rows.

    Args:
        values: float64 (S, Q): per series and query.
        seed: Of the resamples, which are the same for all series.

    Returns:
        float64 (RESAMPLES, S).
    """
    generator = np.random.default_rng(seed)
    num_queries = values.shape[1]
    means = np.empty((RESAMPLES, len(values)))
    for resample in range(RESAMPLES):
        weights = np.bincount(generator.integers(num_queries, size=num_queries), minlength=num_queries)
        means[resample] = (values * weights).sum(axis=1) / num_queries  # a matrix product sums rows by their place
    return means


def interval_of(means: npt.NDArray[np.float64]) -> Interval:
    """The 95 % interval of the means of resampled queries, float64 (RESAMPLES,)."""
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(low=float(low), high=float(high))
