"""Which layout of an index needs the least and fulfils everything: bits, kind, shards, replicas and nodes.

Knows nothing of how anything was measured. All of it is arithmetic on what is predicted of one shard:

* Shards are of equal size, and all replicas lie evenly on the nodes, none of whose memory they share.
* A request asks every shard once, at the same time; a node searches as many shards at a time as it has cores.
* Cores are to be busy for seven tenths of the time at most: beyond that, requests wait for each other.
* What answers HTTP has as many replicas as a shard. Each is one Python process, which keeps one core busy at most; so
  does a replica of a shard of the kinds that are searched in Python.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.index.kinds import IndexKind
from cluster.planning.kind_model import KindModel
from cluster.planning.shard_memory import PROCESS_BYTES

BUSY = 0.7
"""Share of the time that a core may be busy."""
_REQUEST_HOPS, _INGRESS_HOPS = 2, 2
_IN_PYTHON: frozenset[IndexKind] = frozenset(("unique", "table"))
SHARDS = (*range(1, 17), *(base * 2**power for power in range(2, 8) for base in (5, 6, 7, 8)))
"""Numbers of shards that are tried; up to 16 all, then four to each doubling."""
LEAST_ROWS = 2**18
"""Of a shard, if there are several: searching fewer takes less time than asking another shard."""
REPLICAS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of replicas that are tried."""
_HELPED_BY_NODES = ("memory", "latency", "queries per second")


@dataclass(frozen=True)
class Demand:
    """What is asked of the index, and of what it is to be built."""

    items: int
    node_bytes: int
    """Memory of a node."""
    reserved_bytes: int
    """What of it is not for shards."""
    cpus_per_node: int
    max_nodes: int = 0
    """0: any number."""
    latency_ms: float = 0.0
    """0: any."""
    queries_per_second: float = 0.0
    queries_per_request: int = 1
    recall: float = 0.0
    quality: float = 0.0
    """As a share of the best code length's."""
    contiguous: bool = False
    overhead_ms: float = 0.0
    hop_cpu_ms: float = 0.0


class Shortfall(NamedTuple):
    """A constraint that a candidate does not fulfil."""

    constraint: str
    text: str
    """What is and what was asked."""
    excess: float
    """How far it is off, as a share of what was asked."""


@dataclass(frozen=True)
class Candidate:
    """A layout, and what is predicted of it."""

    bits: int
    kind: IndexKind
    parameters: dict[str, int]
    """Those that are asked for; the others follow from a shard's size."""
    shards: int
    replicas: int
    nodes: int
    rows_per_shard: int
    memory_per_node: float
    """Bytes of the fullest node, while shards are loaded, what is reserved included."""
    latency_ms: float
    """Of a request while nothing else is asked, p50."""
    queries_per_second: float
    recall: float
    quality: float
    """As a share of the best code length's."""
    beyond_measured: float
    """Codes of a shard per code of the largest that was measured; above 1 it is extrapolated."""
    shortfalls: tuple[Shortfall, ...] = ()

    @property
    def excess(self) -> float:
        """How far it is off altogether."""
        return sum(one.excess for one in self.shortfalls)

    @property
    def cost(self) -> tuple[float, ...]:
        """Less is better: nodes, then latency in whole milliseconds, then processes, then latency."""
        return (self.nodes, round(self.latency_ms), self.shards * self.replicas, self.latency_ms)


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one of least cost that fulfils everything; of equal ones the first."""
    return min((one for one in candidates if not one.shortfalls), key=lambda one: one.cost, default=None)


def nearest_miss(candidates: Sequence[Candidate]) -> Candidate:
    """The one that fails at the fewest constraints, and by the least; at least one candidate, all of which fail."""
    return min(candidates, key=lambda one: (len(one.shortfalls), round(one.excess, 2), one.cost))


def best_of(model: KindModel, quality: float, demand: Demand) -> Candidate:
    """The best layout of one kind and code length; where none fulfils everything, the one that fails least."""
    candidates = list(_layouts(model, quality, demand))
    return choose(candidates) or nearest_miss(candidates)


def predict(model: KindModel, quality: float, demand: Demand, shards: int, replicas: int, nodes: int) -> Candidate:
    """What a layout does, and at what it fails.

    Args:
        model: Of its kind and code length.
        quality: Of the length, as a share of the best one's.
        demand: What is asked.
        shards: At least 1.
        replicas: Of each shard, at least 1.
        nodes: At least 1, at most one for each replica of a shard.
    """
    rows = math.ceil(demand.items / shards)
    memory = demand.reserved_bytes + math.ceil(shards * replicas / nodes) * (
        PROCESS_BYTES + model.memory(rows, contiguous=demand.contiguous).loading
    )
    search_ms = 1e3 * model.seconds(rows, demand.queries_per_request)
    waves = math.ceil(math.ceil(shards / nodes) / demand.cpus_per_node)
    cores = nodes * demand.cpus_per_node
    request_ms = (_REQUEST_HOPS + shards) * demand.hop_cpu_ms + shards * search_ms
    searching = min(cores, shards * replicas) if model.spec.kind in _IN_PYTHON else cores
    rates = (
        cores / max(request_ms, 1e-9),
        searching / max(shards * search_ms, 1e-9),
        replicas / max(_INGRESS_HOPS * demand.hop_cpu_ms, 1e-9),
    )
    candidate = Candidate(
        bits=model.bits,
        kind=model.spec.kind,
        parameters=dict(model.spec.parameters),
        shards=shards,
        replicas=replicas,
        nodes=nodes,
        rows_per_shard=rows,
        memory_per_node=memory,
        latency_ms=demand.overhead_ms + waves * search_ms,
        queries_per_second=1e3 * BUSY * demand.queries_per_request * min(rates),
        recall=model.recall_of(rows),
        quality=quality,
        beyond_measured=rows / model.measured,
    )
    return dataclasses.replace(candidate, shortfalls=tuple(_shortfalls(candidate, demand)))


def _layouts(model: KindModel, quality: float, demand: Demand) -> Iterator[Candidate]:
    """Per number of shards, with as few replicas and nodes as do; where none do, with every number of replicas."""
    for shards in SHARDS:
        if shards > 1 and demand.items / shards < LEAST_ROWS:
            return
        for replicas in REPLICAS:
            candidate = _on_fewest_nodes(model, quality, demand, shards, replicas)
            yield candidate
            if not candidate.shortfalls:
                break


def _on_fewest_nodes(model: KindModel, quality: float, demand: Demand, shards: int, replicas: int) -> Candidate:
    """The layout on as few nodes as do, else on the most: more are never worse, in anything but their number."""
    most = min(shards * replicas, demand.max_nodes or shards * replicas)

    def suffices(nodes: int) -> bool:
        failing = predict(model, quality, demand, shards, replicas, nodes).shortfalls
        return not any(one.constraint in _HELPED_BY_NODES for one in failing)

    place = bisect.bisect_left(range(1, most + 1), True, key=suffices)
    return predict(model, quality, demand, shards, replicas, min(place + 1, most))


def _shortfalls(one: Candidate, demand: Demand) -> Iterator[Shortfall]:
    if one.quality < demand.quality:
        excess = demand.quality / max(one.quality, 1e-9) - 1
        yield Shortfall("quality", f"{one.quality:.3f} of the best length's, asked {demand.quality:g}", excess)
    if one.recall < demand.recall:
        excess = demand.recall / max(one.recall, 1e-9) - 1
        yield Shortfall("recall", f"{one.recall:.3f}, asked {demand.recall:g}", excess)
    if one.memory_per_node > demand.node_bytes:
        excess = one.memory_per_node / demand.node_bytes - 1
        text = f"{gib(one.memory_per_node)} per node, there are {gib(demand.node_bytes)}"
        yield Shortfall("memory", text, excess)
    if demand.latency_ms and one.latency_ms > demand.latency_ms:
        excess = one.latency_ms / demand.latency_ms - 1
        yield Shortfall("latency", f"{one.latency_ms:.1f} ms, asked {demand.latency_ms:g} ms", excess)
    if one.queries_per_second < demand.queries_per_second:
        excess = demand.queries_per_second / max(one.queries_per_second, 1e-9) - 1
        text = f"{one.queries_per_second:,.0f}, asked {demand.queries_per_second:,g}"
        yield Shortfall("queries per second", text, excess)


def gib(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 2**30:.2f} GiB"
