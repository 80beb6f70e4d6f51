"""The structures of the shards of approximate kinds: built, measured and written; read once they were verified.

Knows nothing of ids and rows, and of how shards are made. A structure is of the codes that its version shows: where
rows are hidden, another one is built, so no search has to leave any out.
"""

import tempfile
from pathlib import Path

import numpy as np

from cibhash.errors import DataError, ManifestMismatch
from cibhash.types import Codes, Distances, Ids
from cluster import storage
from cluster.index.approximate_codes import ApproximateCodes, build_structure, from_bytes, to_bytes
from cluster.index.flat_codes import flat_codes
from cluster.index.kinds import KindSpec
from cluster.index.shard_files import put_named
from cluster.manifests import IndexShardEntry, SearchStructure, read_verified
from cluster.versions import beside

_SAMPLE_QUERIES = 256
_SAMPLE_K = 100
_SAMPLE_SEED = 20210511


def write_structure(base_uri: str, number: int, codes: Codes, spec: KindSpec) -> SearchStructure | None:
    """Builds the structure of a shard, measures what it finds, and writes it; none where none is needed.

    Args:
        base_uri: Directory of the index version.
        number: Of the shard; part of the file name, beside the digest of the content.
        codes: Packed codes uint8 (N, B/8), those that the version shows.
        spec: Kind and parameters of the index.
    """
    if not spec.is_approximate or not len(codes):
        return None
    parameters = spec.of_shard(len(codes), 8 * codes.shape[1])
    structure = build_structure(spec.kind, codes, parameters)
    k, queries = sample_k(len(codes)), codes[sample_positions(len(codes))]
    _, found = ApproximateCodes(codes, structure, threads=1).search(queries, k)
    _, exact = flat_codes(codes, threads=1).search(queries, k)
    with tempfile.TemporaryDirectory(prefix="cibhash-index-") as folder:
        path = Path(folder, "structure.faiss")
        path.write_bytes(to_bytes(structure))
        listed = put_named(base_uri, number, path)
    return SearchStructure(
        **listed.model_dump(),
        parameters=parameters,
        recall=index_recall(found, exact),
        k=k,
        num_queries=len(queries),
    )


def open_structure(base_uri: str, entry: IndexShardEntry, codes: Codes, threads: int) -> ApproximateCodes:
    """The codes of a shard, at least one, with their structure.

    Args:
        base_uri: Directory of the index version; those of other versions lie beside it.
        entry: What the version's manifest says of the shard.
        codes: Its packed codes uint8 (N, B/8) that are not hidden.
        threads: Of a search.

    Raises:
        ManifestMismatch: the manifest lists no structure, the file differs from its digest, or it is of other codes.
        DataError: it cannot be read although its digest is right.
    """
    listed = entry.structure
    if listed is None:
        raise ManifestMismatch(f"{base_uri}: of an approximate kind, but {entry.codes.path} has no structure")
    folder = beside(base_uri, listed.version)
    location = storage.join(folder, listed.path)
    try:
        structure = from_bytes(read_verified(folder, listed))
    except ValueError as error:
        raise DataError(f"{location}: not a readable search structure: {error}") from None
    try:
        return ApproximateCodes(codes, structure, threads)
    except ValueError as error:
        raise ManifestMismatch(f"{location}: {error}") from None


def index_recall(found: Distances, exact: Distances) -> float:
    """Share of the k nearest that were found, by distances (Q, k) each: one as close as the k-th nearest counts."""
    return float(np.mean(found <= exact[:, -1:]))


def sample_k(count: int) -> int:
    """Neighbors for which the recall of a shard with so many codes is measured."""
    return min(_SAMPLE_K, max(1, count // 10))


def sample_positions(count: int) -> Ids:
    """Positions of the codes that are the queries of this measurement, ascending."""
    draws = np.random.default_rng([_SAMPLE_SEED, count])
    return np.sort(draws.choice(count, min(count, _SAMPLE_QUERIES), replace=False))
