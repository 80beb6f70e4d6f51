"""Most similar vectors, exact: FAISS proposes, float64 decides; the result depends on no blocking and no device.

Knows nothing of Ray, of files, and of where vectors come from. Vectors have length 1 and lie on a grid of multiples of
2^-24: sums of fewer than 2^29 of them, and their inner products, are exact in float64 in any order of summation, since
products are multiples of 2^-48 and partial sums stay below 2. FAISS, whose float32 products differ in their last bits
with its blocking, only proposes candidates. Their similarities are computed again in float64, and where something that
was not proposed could still belong among the k nearest, within the error bound of float32, all vectors are compared.
Neighbors are ordered by (-similarity, row). Shapes: Q queries, N database vectors, C candidates, D features.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cibhash.errors import ConfigError
from cibhash.types import Ids
from cluster.runtime import check_faiss

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

GPU_MAX_K = 2000
"""FAISS finds at most 2048 on a GPU, of which some are spare candidates."""
_GRID = 2.0**24
_SPARE_CANDIDATES = 8
_CELLS = 2**22


class Nearest(NamedTuple):
    """Most similar rows per query, ordered by (-similarity, row)."""

    similarities: Floats
    """float64 (Q, <= K); -inf for the query itself, which comes last."""
    rows: Ids
    """int64 (Q, <= K)."""


def unit_length(vectors_ND: npt.NDArray[np.floating]) -> Vectors:
    """Vectors of length 1 on the grid, float32 (N, D); what is 0 stays 0."""
    units_ND = np.empty(vectors_ND.shape, np.float32)
    for rows in _slices(*vectors_ND.shape):
        block_ND = vectors_ND[rows].astype(np.float64)
        lengths_N1 = np.linalg.norm(block_ND, axis=1, keepdims=True)
        units_ND[rows] = np.rint(block_ND / np.where(lengths_N1 > 0, lengths_N1, 1) * _GRID) / _GRID
    return units_ND


def centered(vectors_ND: Vectors, mean_D: Floats) -> Vectors:
    """Vectors minus a mean, of length 1 on the grid again."""
    centered_ND = np.empty_like(vectors_ND)
    for rows in _slices(*vectors_ND.shape):
        centered_ND[rows] = unit_length(vectors_ND[rows] - mean_D)
    return centered_ND


def nearest(
    queries_QD: Vectors, database_ND: Vectors, own_Q: Ids, k: int, *, first_row: int = 0, use_gpu: bool = False
) -> Nearest:
    """The k most similar database vectors of each query.

    Args:
        queries_QD: Vectors on the grid.
        database_ND: Vectors on the grid, N at least 1.
        own_Q: Row of each query itself, which is not its own neighbor; it need not be in this database.
        k: At least 1; at most `GPU_MAX_K` on a GPU.
        first_row: Row of the first database vector.
        use_gpu: Whether FAISS searches on its first GPU.

    Returns:
        Rows from `first_row` on, (Q, min(k, N)).

    Raises:
        ConfigError: no FAISS, or no GPU that it sees.
    """
    rows_N = np.arange(first_row, first_row + len(database_ND))
    asked = min(k + 1 + _SPARE_CANDIDATES, len(database_ND))
    proposed_QC, places_QC = _propose(queries_QD, database_ND, asked, use_gpu)
    found = _first(_similarities(queries_QD, database_ND, places_QC), rows_N[places_QC], own_Q, k)
    if asked == len(database_ND):
        return found
    # What was not proposed has at most the last proposed similarity in float32. The error of that is at most half this:
    # the unit roundoff times D, for vectors of length 1 and any order of summation.
    error = database_ND.shape[1] * float(np.finfo(np.float32).eps)
    open_queries = np.flatnonzero(found.similarities[:, -1] <= proposed_QC.min(axis=1) + error)
    if len(open_queries):
        database64_ND = database_ND.astype(np.float64)
        for rows in _slices(len(open_queries), len(database_ND)):
            some = open_queries[rows]
            similarities_QN = queries_QD[some].astype(np.float64) @ database64_ND.T
            exact = _first(similarities_QN, np.broadcast_to(rows_N, similarities_QN.shape), own_Q[some], k)
            found.similarities[some], found.rows[some] = exact
    return found


def merge(first: Nearest, second: Nearest, k: int) -> Nearest:
    """The k most similar of two databases without a common row, as if they were one."""
    similarities, rows = (np.concatenate(sides, axis=1) for sides in zip(first, second, strict=True))
    order = np.lexsort((rows, -similarities), axis=1)[:, :k]
    return Nearest(np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1))


def _propose(queries_QD: Vectors, database_ND: Vectors, asked: int, use_gpu: bool) -> tuple[Vectors, Ids]:
    """Similarities in float32 and places in the database of the most similar vectors, (Q, C) each."""
    check_faiss()
    import faiss

    faiss.omp_set_num_threads(1)
    index: Any = faiss.IndexFlatIP(database_ND.shape[1])
    if use_gpu:
        if faiss.get_num_gpus() == 0:  # without a driver, asking for resources would abort the process
            raise ConfigError("use_gpu is set, but FAISS sees no GPU: faiss-gpu and a driver are needed")
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, index)
    index.add(database_ND)
    proposed_QC, places_QC = index.search(queries_QD, asked)
    return proposed_QC, places_QC


def _similarities(queries_QD: Vectors, database_ND: Vectors, places_QC: Ids) -> Floats:
    """Exact inner products of each query with its own candidates, (Q, C)."""
    similarities_QC = np.empty(places_QC.shape)
    for rows in _slices(len(places_QC), places_QC.shape[1] * queries_QD.shape[1]):
        candidates_QCD = database_ND[places_QC[rows]].astype(np.float64)
        similarities_QC[rows] = (candidates_QCD @ queries_QD[rows, :, None].astype(np.float64))[:, :, 0]
    return similarities_QC


def _first(similarities_QC: Floats, rows_QC: Ids, own_Q: Ids, k: int) -> Nearest:
    similarities_QC = np.where(rows_QC == own_Q[:, None], -np.inf, similarities_QC)
    order = np.lexsort((rows_QC, -similarities_QC), axis=1)[:, :k]
    return Nearest(np.take_along_axis(similarities_QC, order, axis=1), np.take_along_axis(rows_QC, order, axis=1))


def _slices(length: int, cells: int) -> list[slice]:
    """Ranges of rows of `cells` values each that take a few MiB together."""
    step = max(1, _CELLS // cells)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
