"""What is predicted of a shard of one kind and code length, whatever its size.

Knows nothing of how it was measured. Time is a function of a search's work: comparisons for the kinds that make them,
else what it follows by the kind's structure.
"""

import math
from dataclasses import dataclass

from cluster.index.kinds import TABLE_BITS, KindSpec
from cluster.planning.curves import Curve, DistinctCurve, RecallCurve
from cluster.planning.shard_memory import ShardMemory, file_bytes, shard_memory


@dataclass(frozen=True)
class KindModel:
    """One kind with its parameters, over codes of one length."""

    bits: int
    spec: KindSpec
    k: int
    """Neighbors per query."""
    one_s: Curve
    """Seconds of a query alone, by work."""
    block_s: Curve
    """Seconds of each query of a block, by work."""
    distinct: DistinctCurve
    recall: RecallCurve | None
    """None: exact."""
    measured: int
    """Codes of the largest shard that was measured."""
    inner: "KindModel | None" = None
    """Of a kind that searches its distinct codes by another kind: that one, measured over more codes."""

    def seconds(self, count: int, num_queries: int = 1) -> float:
        """Time of one core for a search over so many codes: one query is bound by memory, many by computing."""
        return max(self.one_query_s(count), num_queries * self.block_query_s(count))

    def one_query_s(self, count: int) -> float:
        """Seconds of a query alone."""
        least = self.inner.one_query_s(round(self.distinct.at(count))) if self.inner else 0.0
        return max(least, self.one_s.at(self.work(count)))

    def block_query_s(self, count: int) -> float:
        """Seconds of each query of a block."""
        least = self.inner.block_query_s(round(self.distinct.at(count))) if self.inner else 0.0
        return max(least, self.block_s.at(self.work(count)))

    def work(self, count: int) -> float:
        """What the time of a search over so many codes follows."""
        return search_work(self.spec, self.bits, count, self.distinct.at(count), self.k)

    def recall_of(self, count: int) -> float:
        """Share of the nearest that a search over so many codes finds."""
        return 1.0 if self.recall is None else self.recall.at(count)

    def memory(self, count: int, *, contiguous: bool) -> ShardMemory:
        """Bytes of a shard of so many codes, at least one."""
        distinct = self.distinct.at(count)
        return shard_memory(self.spec.kind, self._parameters(count), count, distinct, self.bits, contiguous=contiguous)

    def file_bytes(self, count: int, *, contiguous: bool) -> float:
        """Bytes of its files, without rows."""
        return file_bytes(self.spec.kind, self._parameters(count), count, self.bits, contiguous=contiguous)

    def _parameters(self, count: int) -> dict[str, int]:
        return self.spec.of_shard(count, self.bits) if self.spec.is_approximate else {}


def search_work(spec: KindSpec, bits: int, count: int, distinct: float, k: int) -> float:
    """What the time of a query follows in a straight line, by the kind.

    Args:
        spec: Kind, and the parameters that were asked for.
        bits: Code length.
        count: Codes of the shard, at least 1.
        distinct: How many of them differ.
        k: Neighbors per query.
    """
    if spec.kind == "flat":
        return float(count)
    if spec.kind == "unique":
        return distinct
    if spec.kind == "table":  # buckets until k codes are found
        return 2.0**TABLE_BITS * min(1.0, k / count)
    parameters = spec.of_shard(count, bits)
    if spec.kind == "ivf":  # centers, and codes in the lists of the nearest
        return parameters["nlist"] + count * parameters["nprobe"] / parameters["nlist"]
    if spec.kind == "multihash":  # buckets, and codes in them
        hash_bits = parameters["hash_bits"]
        buckets = parameters["nhash"] * sum(math.comb(hash_bits, flips) for flips in range(parameters["nflip"] + 1))
        return buckets * (1.0 + count / 2.0**hash_bits)
    return math.log2(count + 1)  # a walk along a graph
