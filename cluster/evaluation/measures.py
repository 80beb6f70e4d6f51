"""From the histograms of every series to metrics, intervals and differences.

Knows nothing of Ray, files and how results are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash import metrics
from cibhash.metric_terms import QueryMetrics
from cluster.evaluation.bootstrap import bootstrap_means, interval_of
from cluster.evaluation.classes import QueryClasses
from cluster.evaluation.methods import ASYMMETRIC, ITQ, OURS, RANDOM_HYPERPLANES
from cluster.evaluation.results import EMPTY_BALL_RADIUS, FloatMetrics, Interval, Margin, SeriesMetrics
from cluster.evaluation.scoring import Counts, Series

_AVERAGE_PRECISION = "average_precision"
_INTERVALS = {
    "map_all": "average_precision_all",
    "map_at_k_min_kr": "average_precision_min_kr",
    "map_at_k_r": "average_precision_r",
    "ndcg_at_k": "ndcg",
    "precision_at_k": "precision",
    "recall_at_k": "recall",
}
"""Metrics beside mAP@k that get an interval, and the terms of `QueryMetrics` that they are means of."""
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
    per_query: Mapping[Series, QueryMetrics]
    """The terms of the series' means, in the order of the queries."""


def measure(
    counts: Mapping[Series, Counts],
    cosine: npt.NDArray[np.float64] | None,
    *,
    k: int,
    seed: int,
    stored_order: Mapping[Series, npt.NDArray[np.float64]] | None = None,
    classes: QueryClasses | None = None,
) -> Measured:
    """Metrics of every series.

    Args:
        counts: Complete histograms, rows in the same order of the queries.
        cosine: Average precision per query of the float features, float64 (Q,), or None.
        k: At most the size of the database.
        seed: Of the bootstrap; all series see the same resamples, so differences are paired.
        stored_order: Average precision per query with equal distances in the order of ids, by series.
        classes: Of the queries.
    """
    found = {series: metrics.from_histogram(*histograms, k=k) for series, histograms in counts.items()}
    names = [(series, name) for series in found for name in (_AVERAGE_PRECISION, *_INTERVALS.values())]
    rows = [getattr(found[series].per_query, name) for series, name in names]
    rows += [cosine] if cosine is not None else []
    resampled = dict(zip([*names, None], bootstrap_means(np.stack(rows), seed).T, strict=False))
    ranks = log_spaced_ranks(int(next(iter(counts.values())).total.sum(axis=1).max()))
    measured = []
    for series, one in found.items():
        intervals = {name: interval_of(resampled[series, term]) for name, term in _INTERVALS.items()}
        measured.append(
            _series_metrics(
                series,
                one,
                counts[series],
                ranks,
                intervals | {_AVERAGE_PRECISION: interval_of(resampled[series, _AVERAGE_PRECISION])},
                (stored_order or {}).get(series),
                classes,
            )
        )
    sampled = {series: (one.map_at_k, resampled[series, _AVERAGE_PRECISION]) for series, one in found.items()}
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
        upper = FloatMetrics(map_at_k=float(cosine.mean()), interval=interval_of(resampled[None]))
    return Measured(
        series=tuple(measured),
        float_cosine=upper,
        margins=_margins(sampled, ours, itq),
        over_hyperplanes=_margins(sampled, ours, hyperplanes),
        compared=compared,
        per_query={series: one.per_query for series, one in found.items()},
    )


def log_spaced_ranks(count: int) -> tuple[int, ...]:
    """About `NUM_RANKS` ranks from 1 to `count`, evenly spaced in their logarithm."""
    return tuple(int(rank) for rank in np.unique(np.geomspace(1, count, NUM_RANKS).round().astype(np.int64)))


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
            found.append(Margin(bits=bits, difference=value - other_value, interval=interval_of(means - other_means)))
    return tuple(found)


def _series_metrics(
    series: Series,
    found: metrics.RetrievalMetrics,
    counts: Counts,
    ranks: tuple[int, ...],
    intervals: dict[str, Interval],
    stored_order: npt.NDArray[np.float64] | None,
    classes: QueryClasses | None,
) -> SeriesMetrics:
    precision, recall = metrics.precision_recall_by_rank(counts.total, counts.relevant, np.array(ranks))
    hamming = series.method != ASYMMETRIC

    def by_radius(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(values.tolist()) if hamming else ()

    return SeriesMetrics(
        method=series.key,
        bits=series.bits,
        map_at_k=found.map_at_k,
        interval=intervals.pop(_AVERAGE_PRECISION),
        map_worst=found.map_worst,
        map_best=found.map_best,
        map_at_k_min_kr=found.map_at_k_min_kr,
        map_at_k_r=found.map_at_k_r,
        map_all=found.map_all,
        map_stored_order=float(stored_order.mean()) if stored_order is not None else None,
        ndcg_at_k=found.ndcg_at_k,
        precision_at_k=found.precision_at_k,
        recall_at_k=found.recall_at_k,
        intervals=intervals,
        ramap=found.ramap if hamming else None,
        empty_ball_share=float(found.empty_ball_share[EMPTY_BALL_RADIUS]) if hamming else None,
        median_tie_block=found.median_tie_block,
        precision_by_radius=by_radius(found.precision_by_radius),
        recall_by_radius=by_radius(found.recall_by_radius),
        map_by_radius=by_radius(found.map_by_radius),
        empty_balls_by_radius=by_radius(found.empty_ball_share),
        ranks=ranks,
        precision_by_rank=tuple(precision.tolist()),
        recall_by_rank=tuple(recall.tolist()),
        map_by_class=classes.means(found.per_query.average_precision) if classes else (),
        precision_by_class=classes.means(found.per_query.precision) if classes else (),
    )
