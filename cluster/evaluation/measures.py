"""From the histograms of every series to metrics, intervals and the verdict on the baselines.

Knows nothing of Ray, files and how results are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash import metrics
from cluster.evaluation.code_health import CodeStatistics, num_distinct
from cluster.evaluation.methods import ASYMMETRIC, ITQ, OURS, RANDOM_HYPERPLANES
from cluster.evaluation.results import EMPTY_BALL_RADIUS, FloatMetrics, Health, Interval, Margin, SeriesMetrics
from cluster.evaluation.scoring import Counts, Series

RESAMPLES = 1000
NUM_RANKS = 30


@dataclass(frozen=True)
class ComparedMargins:
    """How a compared encoder stands to two others, per length."""

    behind: tuple[Margin, ...]
    """The main encoder's mAP minus its."""
    over_itq: tuple[Margin, ...]
    over_hyperplanes: tuple[Margin, ...]


@dataclass(frozen=True)
class Measured:
    """The part of an evaluation that comes from the scores."""

    series: tuple[SeriesMetrics, ...]
    float_cosine: FloatMetrics | None
    margins: tuple[Margin, ...]
    """Over ITQ."""
    over_hyperplanes: tuple[Margin, ...]
    """Over random hyperplanes."""
    compared: Mapping[str, ComparedMargins]
    """By name of the encoder."""


def measure(
    counts: Mapping[Series, Counts], cosine: npt.NDArray[np.float64] | None, *, k: int, seed: int
) -> tuple[Measured, Mapping[Series, npt.NDArray[np.float64]]]:
    """Metrics of every series.

    Args:
        counts: Complete histograms, rows in the same order of the queries.
        cosine: Average precision per query of the float features, float64 (Q,), or None.
        k: At most the size of the database.
        seed: Of the bootstrap; all series see the same resamples, so differences are paired.

    Returns:
        The metrics, and the average precision of every series per query, float64 (Q,).
    """
    found = {series: metrics.from_histogram(*histograms, k=k) for series, histograms in counts.items()}
    precision = {series: one.average_precision for series, one in found.items()}
    rows = list(precision.values()) + ([cosine] if cosine is not None else [])
    resampled = dict(zip([*precision, None], bootstrap_means(np.stack(rows), seed).T, strict=False))
    ranks = log_spaced_ranks(int(next(iter(counts.values())).total[0].sum()))
    measured = tuple(
        _series_metrics(series, one, counts[series], ranks, _interval(resampled[series]))
        for series, one in found.items()
    )
    sampled = {series: (one.map_at_k, resampled[series]) for series, one in found.items()}
    ours, itq, hyperplanes = (OURS, ""), (ITQ, ""), (RANDOM_HYPERPLANES, "")
    compared = {
        name: ComparedMargins(
            _margins(sampled, ours, (OURS, name)),
            *(_margins(sampled, (OURS, name), baseline) for baseline in (itq, hyperplanes)),
        )
        for name in dict.fromkeys(series.encoder for series in found if series.encoder)
    }
    upper = None
    if cosine is not None:
        upper = FloatMetrics(map_at_k=float(cosine.mean()), interval=_interval(resampled[None]))
    over_itq, over_hyperplanes = (_margins(sampled, ours, baseline) for baseline in (itq, hyperplanes))
    return Measured(measured, upper, over_itq, over_hyperplanes, compared), precision


def verdict(
    margins: tuple[Margin, ...], name: str = "", *, over_hyperplanes: tuple[Margin, ...] = ()
) -> tuple[bool | None, str]:
    """Whether an encoder's mAP is above the baselines' at every length compared, and the sentence that says so.

    Args:
        margins: Over ITQ.
        name: Of a compared encoder; empty: the main one.
        over_hyperplanes: Over random hyperplanes, which are mentioned only where they are not beaten.
    """
    who, poor = name or "THIS ENCODER", _lost(over_hyperplanes)
    warning = f"{who} DOES NOT BEAT RANDOM HYPERPLANES: mAP {poor}. Something is wrong with it." if poor else ""
    if not margins:
        return (False if poor else None), warning
    if lost := _lost(margins):
        advice = "" if name else " PCA-ITQ on the same features is the better choice."
        return False, f"{who} DOES NOT BEAT ITQ: mAP {lost}.{advice} {warning}".rstrip()
    least = min(margins, key=lambda margin: margin.difference)
    unsure = [str(margin.bits) for margin in margins if margin.interval.low <= 0]
    doubt = f"; within the noise of the queries at {', '.join(unsure)} bits" if unsure else ""
    beats = f"{name} beats" if name else "Beats"
    sentence = f"{beats} ITQ at every length, by at least {least.difference:.4f} mAP ({least.bits} bits){doubt}."
    return not poor, f"{sentence} {warning}".rstrip()


def _lost(margins: tuple[Margin, ...]) -> str:
    """The lengths at which there is no gain, as text."""
    return ", ".join(f"{margin.difference:+.4f} at {margin.bits} bits" for margin in margins if margin.difference <= 0)


def health(statistics: CodeStatistics, lengths: tuple[int, ...]) -> tuple[Health, ...]:
    """Distinct codes and bit balance per length."""
    ones = statistics.ones / statistics.count
    return tuple(
        Health(
            bits=bits,
            distinct_share=num_distinct(statistics, bits) / statistics.count,
            least_balanced=float(ones[np.argmax(np.abs(ones[:bits] - 0.5))]),
            mean_imbalance=float(np.abs(ones[:bits] - 0.5).mean()),
            constant_bits=int(np.count_nonzero((ones[:bits] == 0) | (ones[:bits] == 1))),
        )
        for bits in lengths
    )


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


def log_spaced_ranks(count: int) -> tuple[int, ...]:
    """About `NUM_RANKS` ranks from 1 to `count`, evenly spaced in their logarithm."""
    return tuple(int(rank) for rank in np.unique(np.geomspace(1, count, NUM_RANKS).round().astype(np.int64)))


def _interval(means: npt.NDArray[np.float64]) -> Interval:
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(low=float(low), high=float(high))


def _margins(
    sampled: Mapping[Series, tuple[float, npt.NDArray[np.float64]]], first: tuple[str, str], second: tuple[str, str]
) -> tuple[Margin, ...]:
    """The first's mAP minus the second's at every length that both have.

    Args:
        sampled: By series its mAP and the means over resampled queries.
        first: Method and compared encoder, as in `Series`.
        second: Likewise.
    """
    found = []
    for bits in sorted({series.bits for series in sampled}):
        one, other = (Series(method, bits, encoder) for method, encoder in (first, second))
        if one in sampled and other in sampled:
            (value, means), (other_value, other_means) = sampled[one], sampled[other]
            found.append(Margin(bits=bits, difference=value - other_value, interval=_interval(means - other_means)))
    return tuple(found)


def _series_metrics(
    series: Series, found: metrics.RetrievalMetrics, counts: Counts, ranks: tuple[int, ...], interval: Interval
) -> SeriesMetrics:
    precision, recall = metrics.precision_recall_by_rank(counts.total, counts.relevant, np.array(ranks))
    hamming = series.method != ASYMMETRIC
    return SeriesMetrics(
        method=series.key,
        bits=series.bits,
        map_at_k=float(found.map_at_k),
        interval=interval,
        map_worst=float(found.map_worst),
        map_best=float(found.map_best),
        map_at_k_min_kr=float(found.map_at_k_min_kr),
        map_at_k_r=float(found.map_at_k_r),
        precision_at_k=float(found.precision_at_k),
        recall_at_k=float(found.recall_at_k),
        empty_ball_share=float(found.empty_ball_share[EMPTY_BALL_RADIUS]) if hamming else None,
        median_tie_block=float(found.median_tie_block),
        precision_by_radius=tuple(float(value) for value in found.precision_by_radius) if hamming else (),
        recall_by_radius=tuple(float(value) for value in found.recall_by_radius) if hamming else (),
        ranks=ranks,
        precision_by_rank=tuple(float(value) for value in precision),
        recall_by_rank=tuple(float(value) for value in recall),
    )
