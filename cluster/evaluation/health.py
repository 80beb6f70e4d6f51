"""From the statistics of a table's codes to what results say of their health.

Knows nothing of Ray and files.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cibhash.code_health import mutual_information
from cluster.evaluation.code_health import CodeStatistics
from cluster.evaluation.collisions import collisions
from cluster.evaluation.results import BitHealth, Health


def health(statistics: CodeStatistics, lengths: tuple[int, ...]) -> tuple[Health, ...]:
    """Bits, tie blocks and collisions per length."""
    information = mutual_information(statistics.both, statistics.count)
    return tuple(_health(statistics, information, bits) for bits in lengths)


def bit_health(statistics: CodeStatistics, bits: int) -> BitHealth:
    """Every bit and every pair of the first `bits`."""
    information = mutual_information(statistics.both, statistics.count)[:bits, :bits]
    pairs = information[np.triu_indices(bits, k=1)]
    return BitHealth(
        bits=bits,
        ones=tuple((statistics.ones[:bits] / statistics.count).tolist()),
        mutual_information=tuple(pairs.round(6).tolist()),
    )


def size_names(count: int) -> list[str]:
    """What the first `count` classes of `tie_blocks_by_size` are called: 1, 2–3, 4–7, ..."""
    limits = [2**exponent for exponent in range(count + 1)]
    return [f"{low:,}" if high - low == 1 else f"{low:,}–{high - 1:,}" for low, high in pairwise(limits)]


def _health(statistics: CodeStatistics, information: npt.NDArray[np.float64], bits: int) -> Health:
    ones, ties = statistics.ones[:bits] / statistics.count, statistics.ties[bits]
    labeled, pairs = statistics.labeled[bits], information[:bits, :bits][np.triu_indices(bits, k=1)]
    colliding, by_size = collisions(labeled), ties.share_by_size()
    return Health(
        bits=bits,
        distinct_share=ties.num_distinct / statistics.count,
        least_balanced=float(ones[np.argmax(np.abs(ones - 0.5))]),
        mean_imbalance=float(np.abs(ones - 0.5).mean()),
        constant_bits=int(np.count_nonzero((ones == 0) | (ones == 1))),
        mean_entropy=float(np.diagonal(information)[:bits].mean()),
        mean_mutual_information=float(pairs.mean()),
        max_mutual_information=float(pairs.max()),
        shared_code_share=1 - by_size[0],
        largest_tie_block=ties.largest,
        tie_blocks_by_size=by_size,
        tie_blocks_sampled=ties.is_sampled,
        collision_pairs=colliding.pairs,
        collision_share=colliding.share,
        collisions_sampled=labeled.is_sampled,
    )
