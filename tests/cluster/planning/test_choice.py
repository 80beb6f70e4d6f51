"""What a layout does, and the choice against trying everything."""

import dataclasses
import itertools

import pytest

from cluster.index.kinds import IndexKind, KindSpec
from cluster.planning.choice import (
    BUSY,
    LEAST_ROWS,
    REPLICAS,
    SHARDS,
    Candidate,
    Demand,
    best_of,
    choose,
    nearest_miss,
    predict,
)
from cluster.planning.curves import Curve, DistinctCurve, Point, RecallCurve
from cluster.planning.kind_model import KindModel
from cluster.planning.shard_memory import PROCESS_BYTES

GIB = 2**30
MOST_NODES = 8
MANY = Demand(
    items=100_000_000,
    node_bytes=16 * GIB,
    reserved_bytes=2 * GIB,
    cpus_per_node=8,
    latency_ms=50.0,
    queries_per_second=100.0,
    recall=0.95,
    quality=0.9,
    overhead_ms=25.0,
    hop_cpu_ms=7.0,
)


def model(kind: IndexKind = "flat", bits: int = 64, ns_per_work: float = 0.5, recall: float = 1.0) -> KindModel:
    """Time in proportion to work; what is missed doubles with the codes fourfold."""
    line = Curve([Point(0, 1e-5), Point(1e6, 1e-5 + 1e-3 * ns_per_work)])
    spec = KindSpec(kind)
    return KindModel(
        bits=bits,
        spec=spec,
        k=100,
        one_s=line,
        block_s=Curve([Point(0, 1e-6), Point(1e6, 1e-6 + 2e-4 * ns_per_work)]),
        distinct=DistinctCurve([Point(10**5, 10**5), Point(10**6, 10**6)], 2**bits),
        recall=RecallCurve([Point(2**20, recall), Point(2**22, 2 * recall - 1)]) if spec.is_approximate else None,
        measured=2**22,
    )


def every_layout(models: dict[str, KindModel], qualities: dict[str, float], demand: Demand) -> list[Candidate]:
    """All shards, replicas and nodes, without a shortcut."""
    found = []
    for name, shards, replicas in itertools.product(models, SHARDS, REPLICAS):
        if shards > 1 and demand.items / shards < LEAST_ROWS:
            continue
        for nodes in range(1, min(shards * replicas, demand.max_nodes or MOST_NODES) + 1):
            found.append(predict(models[name], qualities[name], demand, shards, replicas, nodes))
    return found


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"queries_per_second": 500.0, "recall": 1.0},
        {"latency_ms": 27.0, "node_bytes": 4 * GIB},
        {"quality": 0.99, "max_nodes": 3, "queries_per_second": 300.0},
        {"queries_per_request": 64, "queries_per_second": 5000.0, "latency_ms": 0.0},
        {"items": 300_000, "latency_ms": 25.2},
    ],
)
def test_the_choice_is_the_best_of_all_layouts(changed: dict[str, float]) -> None:
    demand = dataclasses.replace(MANY, **changed)  # type: ignore[arg-type]
    models = {
        "flat 64": model(),
        "unique 32": model("unique", bits=32, ns_per_work=0.25),
        "ivf": model("ivf", ns_per_work=20.0, recall=0.99),
    }
    qualities = {"flat 64": 1.0, "unique 32": 0.95, "ivf": 1.0}
    chosen = choose([best_of(one, qualities[name], demand) for name, one in models.items()])
    expected = choose(every_layout(models, qualities, demand))
    assert expected is not None
    assert chosen is not None
    assert chosen.cost == expected.cost
    assert chosen.nodes <= MOST_NODES
    assert not chosen.shortfalls


def test_what_is_predicted_is_what_it_is_made_of() -> None:
    one = predict(model(), 1.0, MANY, 4, 2, 3)
    assert (one.shards, one.replicas, one.nodes, one.rows_per_shard) == (4, 2, 3, 25_000_000)
    assert one.memory_per_node == 2 * GIB + 3 * (PROCESS_BYTES + 16 * 25_000_000)
    search_ms = 0.01 + 12.5
    assert one.latency_ms == pytest.approx(25 + search_ms)
    by_cores, by_ingress = 24 / (6 * 7 + 4 * search_ms), 2 / (2 * 7)
    assert one.queries_per_second == pytest.approx(1e3 * BUSY * min(by_cores, by_ingress))
    assert one.beyond_measured == 25_000_000 / 2**22
    crowded = predict(model(), 1.0, dataclasses.replace(MANY, cpus_per_node=2), 4, 1, 1)
    assert crowded.latency_ms == pytest.approx(25 + 2 * search_ms)


def test_queries_of_a_block_take_less_each() -> None:
    alone = predict(model(), 1.0, MANY, 1, 1, 1)
    block = predict(model(), 1.0, dataclasses.replace(MANY, queries_per_request=64), 1, 1, 1)
    assert alone.latency_ms < block.latency_ms < 25 + 64 * (alone.latency_ms - 25)
    assert block.queries_per_second > 2 * alone.queries_per_second


def test_more_items_never_need_less() -> None:
    costs = []
    for items in (10**6, 10**7, 10**8, 10**9):
        found = best_of(model(), 1.0, dataclasses.replace(MANY, items=items, latency_ms=0.0))
        assert not found.shortfalls
        costs.append(found.nodes)
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


@pytest.mark.parametrize("name", ["memory", "latency", "recall", "quality", "queries per second"])
def test_each_constraint_can_be_the_one_that_fails(name: str) -> None:
    changed: dict[str, dict[str, float]] = {
        "memory": {"node_bytes": 3 * GIB, "max_nodes": 1},
        "latency": {"latency_ms": 24.0},
        "recall": {"recall": 1.0},
        "quality": {"quality": 1.0},
        "queries per second": {"queries_per_second": 1e6, "max_nodes": 10},
    }
    used = model("ivf", ns_per_work=20.0, recall=0.999)
    assert choose([best_of(used, 0.95, MANY)]) is not None
    failing = best_of(used, 0.95, dataclasses.replace(MANY, **changed[name]))  # type: ignore[arg-type]
    assert [one.constraint for one in failing.shortfalls] == [name]
    assert failing.shortfalls[0].excess > 0
    assert choose([failing]) is None
    assert nearest_miss([failing]) is failing


def test_of_those_that_fail_the_nearest_is_named() -> None:
    demand = dataclasses.replace(MANY, latency_ms=24.0)
    near, far = best_of(model(), 1.0, demand), best_of(model(), 0.5, demand)
    assert nearest_miss([far, near]) is near
