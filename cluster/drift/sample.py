"""The same images in two code tables: a sample that depends on keys alone, and their codes side by side.

Knows nothing of what is compared. One Ray task per part hashes keys and returns the rows with the smallest values, so
memory is bounded by the sample, and both tables choose the same images whatever their parts.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cibhash.binary import prefix
from cibhash.errors import DataError, ManifestMismatch
from cibhash.types import Codes, Labels
from cluster.code_tables import codes_of, ids_of, read_part
from cluster.evaluation.label_form import common_form, survey_labels
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodeManifest, CodePart
from cluster.telemetry import progress

_COLUMNS = ("id", "key", "code", "labels")
_HASH = "hash of the key"


@dataclass(frozen=True)
class Pairs:
    """Images with both codes, in the order of the hash values of their keys."""

    old: Codes
    """uint8 (N, B/8)."""
    new: Codes
    labels: Labels | None
    """Of the old table, int64 (N,) or bool (N, C); None where no image has one."""
    only_old: int
    """Images of the sample that the other table does not have."""
    only_new: int

    def __len__(self) -> int:
        return len(self.old)


def common_bits(old: tuple[str, CodeManifest], new: tuple[str, CodeManifest]) -> int:
    """The longest code length that both encoders were trained for.

    Raises:
        ManifestMismatch: there is none; names both tables with theirs.
    """
    lengths = [{*table.prefixes, table.bits} for _, table in (old, new)]
    if not (common := lengths[0] & lengths[1]):
        named = " and ".join(
            f"{uri} of {', '.join(map(str, sorted(one)))}" for (uri, _), one in zip((old, new), lengths, strict=True)
        )
        raise ManifestMismatch(f"codes of {named} bits: no length that both have")
    return max(common)


def pairs(old: tuple[str, CodeManifest], new: tuple[str, CodeManifest], limit: int, bits: int) -> Pairs:
    """The images that both tables have, of the `limit` whose keys come first.

    Args:
        old: URI and manifest of a code table.
        new: Of the other.
        limit: Most images.
        bits: Length of the codes, a prefix of both.

    Raises:
        DataError: less than two images are in both.
    """
    tables = [_sample(uri, manifest, limit) for uri, manifest in (old, new)]
    hashes = [_hashes(table) for table in tables]
    if full := [int(values[-1]) for values in hashes if len(values) == limit]:  # beyond that a table may have more
        tables = [table.filter(pc.less_equal(table[_HASH], pa.scalar(min(full), pa.uint64()))) for table in tables]
        hashes = [_hashes(table) for table in tables]
    _, *rows = np.intersect1d(hashes[0], hashes[1], assume_unique=True, return_indices=True)
    if len(rows[0]) < 2:
        raise DataError(f"{old[0]} and {new[0]}: {len(rows[0])} images of the sample are in both, by their keys")
    both = [table.take(pa.array(places)) for table, places in zip(tables, rows, strict=True)]
    codes = [prefix(codes_of(table), bits) for table in both]
    survey = survey_labels(both[0])
    labels = common_form(survey).arrays(both[0]) if survey.labeled else None
    only_old, only_new = (len(table) - len(rows[0]) for table in tables)
    return Pairs(codes[0], codes[1], labels, only_old, only_new)


def _sample(uri: str, manifest: CodeManifest, limit: int) -> pa.Table:
    """The rows with the smallest hash values of their keys, ascending; of a key that comes twice the smaller id."""
    parts = [part for part in manifest.parts if part.rows]
    calls = [(part.path, named_call(_part_sample, f"sample {part.path}", uri, part, limit)) for part in parts]
    found: pa.Table | None = None
    with progress("drift: sample", len(calls), "parts") as line:
        for _, table in completed(calls, default_limit()):
            found = table if found is None else _smallest(pa.concat_tables([found, table]), limit)
            line.advance()
    if found is None:
        raise DataError(f"{uri}: has no row")
    return found


@ray.remote
def _part_sample(uri: str, part: CodePart, limit: int) -> pa.Table:
    table = read_part(uri, part, _COLUMNS)
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in table["key"].to_pylist())
    return _smallest(table.append_column(_HASH, pa.array(np.frombuffer(digests, "<u8"))), limit)


def _smallest(table: pa.Table, limit: int) -> pa.Table:
    order = np.lexsort((ids_of(table), _hashes(table)))
    _, first = np.unique(_hashes(table)[order], return_index=True)
    return table.take(pa.array(order[first[:limit]])).combine_chunks()


def _hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    return np.asarray(table[_HASH].to_numpy(), np.uint64)
