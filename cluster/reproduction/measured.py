"""What the runs of a row measured: mAP at every length over its seeds, with intervals, and the baselines.

Knows nothing of how runs are run and shown. Intervals are over queries: of the mean over the seeds of every query's
average precision, so that runs of the same queries are compared in pairs.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.evaluation.bootstrap import bootstrap_means, interval_of
from cluster.evaluation.methods import BASELINE_NAMES, FLOAT_NAME, OURS
from cluster.evaluation.query_table import QUERIES_FILE
from cluster.evaluation.results import Evaluation, Interval
from cluster.reproduction.runs import Run

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, eq=False)
class Measurement:
    """MAP@k at one length."""

    value: float
    """Mean over the seeds."""
    interval: Interval
    """Bootstrap 95 % over queries."""
    half_range: float
    """Over the seeds; 0 of one."""
    seeds: tuple[int, ...]
    average_precision: npt.NDArray[np.float64]
    """Per query, mean over the seeds, float64 (Q,)."""


@dataclass(frozen=True)
class Difference:
    """MAP@k of one row minus another's over the same queries."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Baseline:
    """A baseline on the features of a row, or the features themselves."""

    name: str
    by_bits: Mapping[int, tuple[float, Interval]]


def measure_runs(runs: Sequence[Run]) -> dict[int, Measurement]:
    """By code length, what these complete runs of one row found."""
    found: dict[int, list[tuple[int, npt.NDArray[np.float64]]]] = {}
    for run in runs:
        for bits, precision in _average_precision(run).items():
            found.setdefault(bits, []).append((run.seed, precision))
    return {bits: _measurement(by_seed) for bits, by_seed in sorted(found.items())}


def differences(first: Mapping[int, Measurement], second: Mapping[int, Measurement]) -> dict[int, Difference]:
    """The first's mAP minus the second's at every length that both have."""
    shared = [bits for bits in first if bits in second]
    return {bits: _difference(first[bits], second[bits]) for bits in shared}


def measure_baselines(runs: Sequence[Run]) -> tuple[Baseline, ...]:
    """The baselines that these complete runs evaluated, and the float features."""
    found: dict[str, dict[int, tuple[float, Interval]]] = {}
    for run in (run for run in runs if run.baselines):
        evaluation = _evaluation(run)
        for one in evaluation.series:
            if one.method in BASELINE_NAMES:
                found.setdefault(BASELINE_NAMES[one.method], {})[one.bits] = (one.map_at_k, one.interval)
        if (upper := evaluation.float_cosine) is not None:
            values = dict.fromkeys(evaluation.lengths, (upper.map_at_k, upper.interval))
            found.setdefault(FLOAT_NAME, {}).update(values)
    names = [name for name in (*BASELINE_NAMES.values(), FLOAT_NAME) if name in found]
    return tuple(Baseline(name, found[name]) for name in names)


def _measurement(by_seed: Sequence[tuple[int, npt.NDArray[np.float64]]]) -> Measurement:
    means = [float(precision.mean()) for _, precision in by_seed]
    averaged = np.mean([precision for _, precision in by_seed], axis=0)
    interval = interval_of(bootstrap_means(averaged[None], _BOOTSTRAP_SEED)[:, 0])
    half_range = (max(means) - min(means)) / 2
    return Measurement(float(np.mean(means)), interval, half_range, tuple(seed for seed, _ in by_seed), averaged)


def _difference(first: Measurement, second: Measurement) -> Difference:
    of_query = first.average_precision - second.average_precision
    return Difference(float(of_query.mean()), interval_of(bootstrap_means(of_query[None], _BOOTSTRAP_SEED)[:, 0]))


def _average_precision(run: Run) -> dict[int, npt.NDArray[np.float64]]:
    """By code length, in the order of the queries' ids, float64 (Q,)."""
    content = storage.read_bytes(storage.join(run.report, QUERIES_FILE))
    table = pq.read_table(io.BytesIO(content), columns=["method", "bits", "id", "average_precision"])
    ours = table.filter(pc.equal(table["method"], OURS)).sort_by("id")
    found = {}
    for bits in run.bits:
        values = ours.filter(pc.equal(ours["bits"], bits))["average_precision"]
        found[bits] = np.asarray(values.to_numpy(), np.float64)
    return found


def _evaluation(run: Run) -> Evaluation:
    return Evaluation.model_validate_json(storage.read_bytes(storage.join(run.report, "metrics.json")))
