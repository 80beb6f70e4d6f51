"""The JSON manifests that make a directory complete: dataset, code table, index; and how they are read and written.

Knows nothing of how the listed files are made. A manifest is written last and create-only; readers open only files
that it lists, and verify their digests. Paths inside a manifest are relative to its directory, or absolute URIs.
"""

import hashlib
import json
from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cibhash.errors import DataError, ManifestMismatch, NotFound
from cibhash.types import TarShard
from cluster import storage
from cluster.index.kinds import IndexKind, KindSpec

M = TypeVar("M", bound="Manifest")


class Manifest(BaseModel):
    """Base of the manifests: frozen, no unknown fields, canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file_name: ClassVar[str]
    noun: ClassVar[str]

    def to_json(self) -> bytes:
        """Canonical bytes: equal manifests give equal files."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()


class ListedFile(BaseModel):
    """A file that a manifest vouches for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    """Relative to the manifest's directory, or an absolute URI."""
    bytes: int
    sha256: str


class DatasetManifest(Manifest):
    """`dataset.json`: the tar shards of one split."""

    file_name: ClassVar[str] = "dataset.json"
    noun: ClassVar[str] = "dataset"
    format: Literal["cibhash-dataset-1"] = "cibhash-dataset-1"
    name: str
    split: str
    shards: tuple[TarShard, ...]

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 over content and ids of the shards; independent of where they lie."""
        return _digest([[shard.sha256, shard.count, shard.first_id] for shard in self.shards])


class CodePart(ListedFile):
    """One Parquet file of codes, made from one tar shard."""

    shard: str
    """URI of the tar shard, as its dataset's manifest has it."""
    shard_sha256: str
    rows_in: int
    rows: int
    quarantined: int
    min_id: int
    max_id: int


class QuarantineTable(ListedFile):
    """The Parquet table of refused samples: id, key, shard, stage, reason."""

    rows: int


class TombstoneTable(ListedFile):
    """The Parquet table of rows that earlier versions had: id, key, last_version, reason (`deleted` or `replaced`).

    A row counts as dead where it comes from `last_version` or before: its id may live on with another image.
    """

    rows: int


class CodeManifest(Manifest):
    """`codes.json`: one version of a code table, complete: `rows_in = rows_out + quarantined`."""

    file_name: ClassVar[str] = "codes.json"
    noun: ClassVar[str] = "code table"
    format: Literal["cibhash-codes-1"] = "cibhash-codes-1"
    version: str = ""
    encoder_digest: str
    encoder_uri: str
    dataset_digest: str
    dataset_uri: str
    """Base of the relative shard URIs in the column `shard`."""
    bits: int
    prefixes: tuple[int, ...]
    """Code lengths that were trained, ascending; the last is `bits`."""
    bit_order: Literal["little"] = "little"
    features: int = 0
    """Values per row of the column `features`, or 0 where it is absent."""
    logits: bool = False
    """Whether there is a column `logits`, with `bits` values per row."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone when the codes were made."""
    compiled: bool = False
    """Whether torch compiled the backbone."""
    parts: tuple[CodePart, ...]
    quarantine: QuarantineTable
    tombstones: TombstoneTable | None = None
    """Of all earlier versions; absent where nothing was deleted or replaced."""
    rows_in: int
    rows_out: int
    quarantined: int

    @property
    def digest(self) -> str:
        """SHA-256 over encoder, dataset, the parts' content and what is gone; independent of the version's name."""
        parts = [[part.sha256, part.rows] for part in self.parts]
        gone = [self.tombstones.sha256] if self.tombstones else []
        return _digest([self.encoder_digest, self.dataset_digest, parts, *gone])


def _is_default(value: object) -> bool:
    return not value


class HiddenIds(ListedFile):
    """The rows of an index shard that are in its files but not in the index: tensor `ids` int64, ascending."""

    count: int
    version: str = Field(default="", exclude_if=_is_default)
    """Version whose folder holds the file; empty: the manifest's own."""


class SearchStructure(ListedFile):
    """What FAISS built from the codes of an index shard that are not hidden, and how much of the truth it finds."""

    parameters: dict[str, int]
    recall: float
    """Share of the k nearest that it finds of as many codes of the shard; one as close as the k-th nearest counts."""
    k: int
    num_queries: int
    version: str = Field(default="", exclude_if=_is_default)
    """Version whose folder holds the file; empty: the manifest's own."""


class IndexShardEntry(BaseModel):
    """One index shard: codes and ids in one safetensors file, and the rows they stand for, unless left out, as Arrow.

    A later version of an index lists the files of an earlier one, and beside them the ids to hide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    codes: ListedFile
    """Tensors `codes` uint8 (N, B/8) and `ids` int64 (N,), ids ascending; contiguous ones are but their first: tensor
    `first_id` int64 (1,)."""
    rows: ListedFile | None = Field(default=None, exclude_if=_is_default)
    """Arrow IPC file: id, key, labels, shard (absolute URI), offset, size; absent in an index without rows."""
    count: int
    """Rows that are not hidden; `min_id` and `max_id` are theirs."""
    min_id: int
    max_id: int
    version: str = Field(default="", exclude_if=_is_default)
    """Version whose folder holds `codes` and `rows`; empty: the manifest's own."""
    hidden: HiddenIds | None = Field(default=None, exclude_if=_is_default)
    structure: SearchStructure | None = Field(default=None, exclude_if=_is_default)
    """Of the approximate kinds alone; an empty shard has none."""

    @property
    def stored(self) -> int:
        """Rows in the files, hidden ones too."""
        return self.count + (self.hidden.count if self.hidden else 0)


class CodeTableRef(BaseModel):
    """The version of a code table that an index was built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uri: str
    digest: str
    version: str = Field(default="", exclude_if=_is_default)
    """Its name; empty where the table had no versions, or the index is of the time before they were recorded."""


class IndexManifest(Manifest):
    """`index.json`: one immutable version of an index."""

    file_name: ClassVar[str] = "index.json"
    noun: ClassVar[str] = "index"
    format: Literal["cibhash-index-1"] = "cibhash-index-1"
    version: str
    encoder_digest: str
    encoder_uri: str
    code_tables: tuple[CodeTableRef, ...]
    bits: int
    prefixes: tuple[int, ...]
    """Lengths that the encoder was trained for, also those above `bits`."""
    kind: IndexKind = "flat"
    parameters: dict[str, int] = Field(default_factory=dict, exclude_if=_is_default)
    """Those of the kind that were asked for; what a shard has is in its `structure`."""
    bare: bool = Field(default=False, exclude_if=_is_default)
    """Whether it was built without rows: it knows ids and codes, but no keys, labels and originals."""
    shards: tuple[IndexShardEntry, ...]

    @property
    def count(self) -> int:
        """Codes over all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def code_bits(self) -> int:
        """Length of the codes that it was made from, of which it has the first `bits`."""
        return max((self.bits, *self.prefixes))

    @property
    def spec(self) -> KindSpec:
        """What new shards are made by."""
        return KindSpec(self.kind, self.parameters)


def load_manifest(cls: type[M], uri: str) -> M:
    """Reads and validates the manifest in the directory `uri`.

    Raises:
        NotFound: no manifest, so the directory is not (yet) what it should be.
        DataError: the JSON is broken or has another layout.
    """
    location = storage.join(uri, cls.file_name)
    try:
        raw = storage.read_bytes(location)
    except NotFound:
        raise NotFound(f"{uri}: not a complete {cls.noun}: {cls.file_name} is missing") from None
    try:
        return cls.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise DataError(f"{location}: broken {cls.noun} manifest: {where}: {first['msg']}") from None


def create_manifest(uri: str, manifest: Manifest) -> str:
    """Commits a directory: writes its manifest last and create-only; returns its URI.

    Raises:
        AlreadyExists: another writer committed first.
    """
    location = storage.join(uri, manifest.file_name)
    storage.create_bytes(location, manifest.to_json())
    return location


def read_verified(base: str, entry: ListedFile) -> bytes:
    """The content of a listed file, after its size and SHA-256 were checked.

    Raises:
        ManifestMismatch: the file is not what the manifest lists, with both digests.
    """
    location = storage.join(base, entry.path)
    content = storage.read_bytes(location)
    check_digest(location, entry.bytes, entry.sha256, len(content), hashlib.sha256(content).hexdigest())
    return content


def check_digest(uri: str, expected_bytes: int, expected_sha256: str, found_bytes: int, found_sha256: str) -> None:
    """Refuses a file that differs from its manifest.

    Raises:
        ManifestMismatch: naming the file and both sizes or digests.
    """
    if found_bytes != expected_bytes:
        raise ManifestMismatch(f"{uri}: {found_bytes} bytes, its manifest says {expected_bytes}")
    if found_sha256 != expected_sha256:
        raise ManifestMismatch(f"{uri}: sha256 {found_sha256[:16]}..., its manifest says {expected_sha256[:16]}...")


def same_encoder(*tables: tuple[str, str]) -> str:
    """The digest that all (uri, encoder digest) pairs share.

    Raises:
        ManifestMismatch: two differ; names both URIs and digests.
    """
    first_uri, digest = tables[0]
    for uri, other in tables[1:]:
        if other != digest:
            raise ManifestMismatch(f"{uri} was made by encoder {other[:16]}..., but {first_uri} by {digest[:16]}...")
    return digest


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
