"""Approximate search over the codes of a shard by a structure of FAISS: built, as bytes, and searched.

Knows nothing of ids, rows and where the bytes are kept. FAISS detects hardly any damage in its own format, so bytes
from elsewhere must have been verified.
"""

from typing import Any

import numpy as np

from cibhash.types import Codes, Distances, Ids
from cluster.index.faiss_module import faiss_with
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import IndexKind


class ApproximateCodes:
    """Asks the structure first; a query for which it finds too few is answered exactly, and so is every radius."""

    def __init__(self, codes: Codes, structure: Any, threads: int) -> None:
        """Takes packed codes uint8 (N, B/8), and the structure built from them or its like, read from bytes.

        Raises:
            ValueError: the structure is of other codes.
        """
        if (structure.d, structure.ntotal) != (8 * codes.shape[1], len(codes)):
            raise ValueError(
                f"a structure of {structure.ntotal} codes of {structure.d} bits, "
                f"expected {len(codes)} of {8 * codes.shape[1]}"
            )
        self._structure, self._threads = structure, threads
        self._exact = flat_codes(codes, threads)

    def search(self, codes: Codes, k: int) -> tuple[Ids, Distances]:
        """Positions and distances (Q, k) of the nearest that are found; k is 1 to N."""
        faiss_with(self._threads)
        distances, positions = self._structure.search(np.ascontiguousarray(codes), k)
        order = np.lexsort((positions, distances), axis=1)
        distances, positions = (np.take_along_axis(array, order, 1) for array in (distances, positions))
        short = np.flatnonzero(np.any(positions < 0, axis=1))
        if len(short):
            positions[short], distances[short] = self._exact.search(codes[short], k)
        return positions, distances

    def range_search(self, codes: Codes, radius: int) -> tuple[Ids, Ids, Distances]:
        """Limits (Q + 1,), positions and distances of all codes within the inclusive radius: by the codes, exactly."""
        return self._exact.range_search(codes, radius)


def build_structure(kind: IndexKind, codes: Codes, parameters: dict[str, int]) -> Any:
    """The structure of an approximate kind over packed codes (N, B/8), at least one; equal codes give equal bytes."""
    faiss = faiss_with(1)  # with more threads, what HNSW builds would depend on their order
    bits, codes = 8 * codes.shape[1], np.ascontiguousarray(codes)
    if kind == "ivf":
        structure = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, parameters["nlist"])
        structure.cp.min_points_per_centroid = 1
        structure.train(codes)
        structure.nprobe = parameters["nprobe"]
    elif kind == "multihash":
        structure = faiss.IndexBinaryMultiHash(bits, parameters["nhash"], parameters["hash_bits"])
        structure.nflip = parameters["nflip"]
    elif kind == "hnsw":
        structure = faiss.IndexBinaryHNSW(bits, parameters["m"])
        structure.hnsw.efSearch = parameters["ef_search"]
    else:
        raise ValueError(f"{kind} is not an approximate kind of index")
    structure.add(codes)
    return structure


def to_bytes(structure: Any) -> bytes:
    """The structure with its search parameters, in FAISS' own format."""
    content: bytes = faiss_with(1).serialize_index_binary(structure).tobytes()
    return content


def from_bytes(content: bytes) -> Any:
    """The structure in bytes that were verified.

    Raises:
        ValueError: they hold none.
    """
    try:
        return faiss_with(1).deserialize_index_binary(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        raise ValueError(str(error)) from None
