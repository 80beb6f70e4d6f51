"""What an index job made.

Knows nothing of how.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.index.kinds import IndexKind
from cluster.manifests import IndexManifest, ListedFile


@dataclass(frozen=True)
class IndexResult:
    """What an index build made; after a dry run, what it would make."""

    index_uri: str
    version: str
    """Name of the published version, or of the current one where nothing was to be done; "" after a dry run."""
    encoder_digest: str
    bits: int
    count: int
    """Codes over all shards."""
    shards: int
    bytes: int
    """Size of all files that the version lists; 0 after a dry run."""
    rows_added: int = 0
    """By --append, as all below: rows of new parts."""
    rows_hidden: int = 0
    """Rows of parts that are gone."""
    shards_kept: int = 0
    """Shards whose files are of an earlier version; after a dry run, all that may be kept."""
    shards_new: int = 0
    bytes_written: int = 0
    """Size of the files that are new."""
    kind: IndexKind = "flat"
    least_recall: float | None = None
    """Of an approximate kind: recall of the shard where it was measured to be least."""
    mean_recall: float | None = None
    """Its mean over the shards."""


def published(uri: str, manifest: IndexManifest) -> IndexResult:
    """The account of a version that stands for itself."""
    recalls = [entry.structure.recall for entry in manifest.shards if entry.structure is not None]
    return IndexResult(
        index_uri=uri,
        version=manifest.version,
        encoder_digest=manifest.encoder_digest,
        bits=manifest.bits,
        count=manifest.count,
        shards=len(manifest.shards),
        bytes=sum(file.bytes for _, file in _files(manifest)),
        kind=manifest.kind,
        least_recall=min(recalls, default=None),
        mean_recall=sum(recalls) / len(recalls) if recalls else None,
    )


def planned(uri: str, manifest: IndexManifest, count: int, num_shards: int) -> IndexResult:
    """The account of a dry run: a version like `manifest` with other rows and shards."""
    return IndexResult(uri, "", manifest.encoder_digest, manifest.bits, count, num_shards, 0, kind=manifest.kind)


def own_bytes(manifest: IndexManifest) -> int:
    """Size of the listed files that lie in the version's own folder."""
    return sum(file.bytes for version, file in _files(manifest) if not version)


def _files(manifest: IndexManifest) -> Iterator[tuple[str, ListedFile]]:
    """Every listed file, with the version that has it; "" for the manifest's own."""
    for entry in manifest.shards:
        yield entry.version, entry.codes
        if entry.rows is not None:
            yield entry.version, entry.rows
        if entry.hidden is not None:
            yield entry.hidden.version, entry.hidden
        if entry.structure is not None:
            yield entry.structure.version, entry.structure
