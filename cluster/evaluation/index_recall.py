"""How much of the exact answer an index over the database finds for the queries: recall of its kind, against exact.

Knows nothing of labels. One Ray task per index shard searches it both ways; the answers are merged as in a search.
"""

import numpy as np
import ray

from cibhash.binary import prefix
from cibhash.errors import ManifestMismatch
from cibhash.types import Codes, Neighbors
from cluster import storage
from cluster.code_tables import codes_of
from cluster.evaluation.plan import EvaluationPlan
from cluster.evaluation.results import IndexRecall
from cluster.evaluation.table_columns import read_columns
from cluster.in_flight import completed, default_limit, named_call
from cluster.index.kinds import IndexKind
from cluster.index.merge import merge_neighbors
from cluster.index.shard_index import ShardIndex
from cluster.index.structure_files import index_recall
from cluster.index.versions import OpenIndex, open_index
from cluster.manifests import IndexShardEntry, same_encoder

MAX_QUERIES = 1000
"""Queries that are searched, evenly spaced among all."""


def open_measured_index(uri: str, plan: EvaluationPlan) -> OpenIndex | None:
    """The index to measure; None where none is named.

    Raises:
        NotFound: there is no index.
        ManifestMismatch: it is of another encoder, or of codes of another length.
    """
    if not uri:
        return None
    index, table = open_index(storage.absolute(uri)), plan.database
    same_encoder((table.uri, table.manifest.encoder_digest), (index.base_uri, index.manifest.encoder_digest))
    if index.manifest.code_bits != table.manifest.bits:
        raise ManifestMismatch(
            f"{index.base_uri} is of codes of {index.manifest.code_bits} bits, {table.uri} of {table.manifest.bits}"
        )
    return index


def measure_recall(index: OpenIndex, plan: EvaluationPlan) -> IndexRecall:
    """Share of the k nearest of a query that the index finds, mean over queries; one as close as the k-th counts.

    Raises:
        ManifestMismatch, DataError: a shard is not what its manifest says.
    """
    manifest = index.manifest
    codes = prefix(codes_of(read_columns(plan.queries, ["code"])), manifest.bits)
    queries = codes[np.unique(np.linspace(0, len(codes) - 1, MAX_QUERIES).round().astype(np.int64))]
    k = max(1, min(plan.k, manifest.count))
    calls = [
        (entry.codes.path, named_call(_both, f"recall {entry.codes.path}", index, entry, queries, k))
        for entry in manifest.shards
    ]
    by_kind, exact = zip(*(found for _, found in completed(calls, default_limit())), strict=True)
    found, best = (merge_neighbors(answers, k).distances for answers in (by_kind, exact))
    return IndexRecall(
        version=manifest.version,
        kind=str(manifest.spec),
        bits=manifest.bits,
        shards=len(manifest.shards),
        k=k,
        num_queries=len(queries),
        recall=index_recall(found, best),
    )


@ray.remote
def _both(index: OpenIndex, entry: IndexShardEntry, queries: Codes, k: int) -> tuple[Neighbors, Neighbors]:
    def search(kind: IndexKind) -> Neighbors:
        return ShardIndex.load(index.base_uri, entry, index.manifest.bits, kind=kind).search(queries, k)

    return search(index.manifest.kind), search("flat")
