"""Measures, on the spot, what searches of each kind take and find, over codes like a sample's, at several sizes.

Knows nothing of constraints and nodes. What is timed is what the service searches with, one thread. Sizes alternate
within a round and medians count, so that a machine that others load too does not bend the curves.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cibhash.types import PADDING_DISTANCE, Codes, Distances
from cluster.index.approximate_codes import ApproximateCodes, build_structure
from cluster.index.bucket_codes import BucketCodes
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import APPROXIMATE, IndexKind, KindSpec
from cluster.index.searchable_codes import SearchableCodes
from cluster.index.structure_files import index_recall, sample_positions
from cluster.index.unique_codes import UniqueCodes
from cluster.planning.curves import Curve, DistinctCurve, Point, RecallCurve
from cluster.planning.generated_codes import GeneratedCodes
from cluster.planning.kind_model import KindModel, search_work

BLOCK = 64
"""Queries of a block."""
_ALONE = 8
"""Queries that are searched one by one in a round."""
_ROUNDS = 7
SIZES = tuple(4**power for power in range(7, 13))
"""Codes of the shards that are measured: 16 thousand to 16 million."""
_DIFFERENT = SIZES[-2]
"""More codes than these are the same ones again, and only of the kind flat, which compares them all: the largest shard
is to lie in memory, not in a cache."""
_LEAST_SIZES = 2
ASKED: dict[IndexKind, tuple[dict[str, int], ...]] = {
    "ivf": ({"nprobe": 8}, {"nprobe": 32}, {"nprobe": 128}),
    "hnsw": ({"ef_search": 64}, {"ef_search": 256}),
    "multihash": ({"nflip": 1}, {"nflip": 2}),
}
"""Parameters of the approximate kinds that are tried: the one that trades time for recall."""
_WEIGHTS: dict[IndexKind, int] = {"flat": 6, "unique": 3, "table": 2, "ivf": 3, "hnsw": 2, "multihash": 1}
"""What share of the time a kind gets: most where most lies beyond what can be measured."""
_CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.thread_time, "wall": time.perf_counter}


@dataclass
class Stopwatch:
    """Times calls by the clock that was chosen, and keeps how long they took by the wall."""

    clock: Literal["cpu", "wall"]
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def seconds(self, work: Callable[[], object]) -> float:
        """What one call takes."""
        begun = {name: now() for name, now in _CLOCKS.items()}
        work()
        took = {name: now() - begun[name] for name, now in _CLOCKS.items()}
        self.cpu_s, self.wall_s = self.cpu_s + took["cpu"], self.wall_s + took["wall"]
        return took[self.clock]

    @property
    def contention(self) -> float:
        """Seconds by the wall for each second of a core, at least 1."""
        return max(1.0, self.wall_s / self.cpu_s) if self.cpu_s else 1.0


@dataclass
class Probe:
    """One shard that is measured: codes with what searches them."""

    spec: KindSpec
    count: int
    distinct: int
    """How many of the codes differ, where that matters; else as many as there are."""
    searched: SearchableCodes
    set_up: Callable[[], None]
    """Sets the parameters with which the structure is searched; several probes share one."""
    queries: Codes
    recall: float
    unaided: float
    """Recall of a structure alone, which is not helped where it finds too few: of large shards it hardly ever is."""
    one_s: list[float] = field(default_factory=list)
    block_s: list[float] = field(default_factory=list)

    def time(self, stopwatch: Stopwatch, number: int, k: int) -> None:
        """One round: some queries alone, and a block."""
        self.set_up()
        k = min(k, self.count)
        for place in range(number * _ALONE, (number + 1) * _ALONE):
            query = self.queries[place % len(self.queries)][None]
            self.one_s.append(stopwatch.seconds(lambda query=query: self.searched.search(query, k)))  # type: ignore[misc]
        block = self.queries[:BLOCK]
        self.block_s.append(stopwatch.seconds(lambda: self.searched.search(block, k)) / len(block))


def sizes_for(items: int) -> tuple[int, ...]:
    """Codes of the shards that are measured, ascending: none has more than all items."""
    fitting = tuple(size for size in SIZES if size <= items)
    return fitting if len(fitting) >= _LEAST_SIZES else tuple(sorted({max(1, items // 4), items}))


def calibrate(
    generated: Mapping[int, GeneratedCodes],
    wanted: Sequence[tuple[int, IndexKind]],
    items: int,
    k: int,
    seconds: float,
    stopwatch: Stopwatch,
) -> list[KindModel]:
    """Measures every kind and length that is wanted; what one leaves of its time is for those after it.

    Args:
        generated: Codes by their length.
        wanted: Lengths and kinds, in the order in which they are measured.
        items: Codes of the corpus.
        k: Neighbors per query.
        seconds: About how long is measured; at least two sizes of everything are.
        stopwatch: What is timed with.
    """
    models: list[KindModel] = []
    until = time.monotonic() + seconds
    for place, (bits, kind) in enumerate(wanted):
        ahead = sum(_WEIGHTS[other] for _, other in wanted[place:])
        share_s = (until - time.monotonic()) * _WEIGHTS[kind] / ahead
        probes = _build(generated[bits], kind, sizes_for(items), k, share_s)
        time_rounds(probes, k, stopwatch)
        models += fitted(probes, bits, k, generated[bits].most_distinct)
    return _at_least_flat(models)


def time_rounds(probes: Sequence[Probe], k: int, stopwatch: Stopwatch, rounds: int = _ROUNDS) -> None:
    """Times all probes once per round, one after the other."""
    for number in range(rounds):
        for probe in probes:
            probe.time(stopwatch, number, k)


def fitted(probes: Sequence[Probe], bits: int, k: int, most_distinct: float) -> list[KindModel]:
    """A model per kind and parameters, from probes of several sizes that were timed.

    Args:
        probes: Of one kind and code length.
        bits: Code length.
        k: Neighbors per query.
        most_distinct: Distinct codes that a shard of any size can have.
    """
    models = []
    by_spec = itertools.groupby(sorted(probes, key=lambda probe: str(probe.spec)), key=lambda probe: str(probe.spec))
    for _, group in by_spec:
        same = list(group)
        works = [search_work(probe.spec, bits, probe.count, probe.distinct, k) for probe in same]
        models.append(
            KindModel(
                bits=bits,
                spec=same[0].spec,
                k=k,
                one_s=_curve(works, [probe.one_s for probe in same]),
                block_s=_curve(works, [probe.block_s for probe in same]),
                distinct=DistinctCurve([Point(probe.count, probe.distinct) for probe in same], most_distinct),
                recall=_recall_curve(same) if same[0].spec.is_approximate else None,
                measured=max(probe.count for probe in same),
            )
        )
    return models


def build_probes(codes: Codes, kind: IndexKind, k: int) -> list[Probe]:
    """What is measured of one shard: one probe, or one per set of parameters of an approximate kind."""
    queries = codes[sample_positions(len(codes))]
    if kind in APPROXIMATE:
        probes = _approximate(codes, kind, queries, k)
    else:
        made = _exact(codes, kind)
        distinct = made.num_distinct if isinstance(made, UniqueCodes) else len(codes)
        probes = [Probe(KindSpec(kind), len(codes), distinct, made, lambda: None, queries, 1.0, 1.0)]
    for probe in probes:  # what is done once, such as reading the codes for the first time, is not timed
        probe.set_up()
        probe.searched.search(queries[:1], min(k, len(codes)))
    return probes


def _build(generated: GeneratedCodes, kind: IndexKind, sizes: Sequence[int], k: int, share_s: float) -> list[Probe]:
    """Probes of at least two sizes, and of as many more as can be built and timed within the share."""
    probes: list[Probe] = []
    begun = time.monotonic()
    sizes = [size for size in sizes if kind == "flat" or size <= _DIFFERENT]
    for size, larger in itertools.zip_longest(sizes, sizes[1:]):
        started = time.monotonic()
        codes = generated.first(min(size, _DIFFERENT))
        if size == _DIFFERENT:  # the next ones are there already
            started = time.monotonic()
        added = build_probes(np.tile(codes, (size // len(codes), 1)) if size > len(codes) else codes, kind, k)
        probes += added
        rehearsal = Stopwatch("wall")
        for probe in added:
            probe.time(rehearsal, 0, k)
            probe.one_s.clear()
            probe.block_s.clear()
        if larger is None:
            break
        ahead_s = _ROUNDS * rehearsal.wall_s * (1 + larger / size)
        ahead_s += (time.monotonic() - started) * larger / size
        if len({probe.count for probe in probes}) >= _LEAST_SIZES and time.monotonic() - begun + ahead_s > share_s:
            break
    return probes


def _at_least_flat(models: Sequence[KindModel]) -> list[KindModel]:
    """The models, those of the kind unique with the one that their distinct codes are searched by."""
    flat = {model.bits: model for model in models if model.spec.kind == "flat"}
    return [
        dataclasses.replace(model, inner=flat.get(model.bits)) if model.spec.kind == "unique" else model
        for model in models
    ]


def _exact(codes: Codes, kind: IndexKind) -> SearchableCodes:
    if kind == "unique":
        return UniqueCodes(codes, 1)
    return BucketCodes(codes) if kind == "table" else flat_codes(codes, 1)


def _approximate(codes: Codes, kind: IndexKind, queries: Codes, k: int) -> list[Probe]:
    bits, k = 8 * codes.shape[1], min(k, len(codes))
    specs = [KindSpec(kind, asked) for asked in ASKED[kind]]
    structure = build_structure(kind, codes, specs[0].of_shard(len(codes), bits))
    searched = ApproximateCodes(codes, structure, 1)
    exact: Distances = flat_codes(codes, 1).search(queries, k)[1]
    probes = []
    for spec in specs:
        set_up = _setter(structure, spec.of_shard(len(codes), bits))
        set_up()
        recall = index_recall(searched.search(queries, k)[1], exact)
        found, positions = structure.search(queries, k)
        unaided = index_recall(np.where(positions < 0, PADDING_DISTANCE, found), exact)
        probes.append(Probe(spec, len(codes), len(codes), searched, set_up, queries, recall, unaided))
    return probes


def _setter(structure: Any, parameters: dict[str, int]) -> Callable[[], None]:
    """Sets what decides, at a search, how much of a structure of FAISS is looked at."""

    def set_up() -> None:
        if "ef_search" in parameters:
            structure.hnsw.efSearch = parameters["ef_search"]
        elif "nprobe" in parameters:
            structure.nprobe = parameters["nprobe"]
        else:
            structure.nflip = parameters["nflip"]

    return set_up


def _recall_curve(probes: Sequence[Probe]) -> RecallCurve:
    largest = max(probes, key=lambda probe: probe.count)
    return RecallCurve([Point(probe.count, probe.recall) for probe in probes], largest.unaided)


def _curve(works: Sequence[float], seconds: Sequence[Sequence[float]]) -> Curve:
    """Medians by work; of shards with the same work, their mean."""
    values: dict[float, list[float]] = {}
    for work, taken in zip(works, seconds, strict=True):
        values.setdefault(work, []).append(statistics.median(taken))
    points = [Point(work, statistics.mean(medians)) for work, medians in values.items()]
    return Curve(points, in_proportion=True)
