"""What a person writes to build an index, and to find the neighbors of a whole code table in one.

Knows nothing of the command line and of how shards are searched.
"""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config import JobConfig, Section, check_lengths
from cluster.index.kinds import APPROXIMATE, IndexKind
from cluster.sizes import parse_size


class ShardSearchConfig(JobConfig):
    """Base of the jobs that hold index shards in memory."""

    use_gpu: bool = False
    """Search index shards on GPUs, which hold a copy of their codes: 8 bytes for every 64 bits. The index must be of
    kind flat; answers are the same."""
    gpus_per_shard: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a GPU that a replica or an actor with shards asks Ray for: with 0.25, four are placed on one. Ray does
    not divide the memory."""

    @property
    def device(self) -> str:
        """Where shards are searched, as torch names it; empty: on CPUs."""
        return "cuda" if self.use_gpu else ""

    @property
    def num_gpus(self) -> float:
        """What a replica or an actor with shards asks Ray for."""
        return self.gpus_per_shard if self.use_gpu else 0.0

    @model_validator(mode="after")
    def _check_gpus(self) -> "ShardSearchConfig":
        if not self.use_gpu and self.gpus_per_shard != 1.0:
            raise ValueError("gpus_per_shard: only with --use-gpu")
        return self


class IvfConfig(Section):
    """Kind `ivf`: codes in lists around trained centers; a query looks through the lists of the nearest centers."""

    nlist: PositiveInt | None = None
    """Lists of a shard. Default: the root of its codes, and at least 39 codes for each."""
    nprobe: PositiveInt | None = None
    """Lists that a query looks through: more find more, in more time. Default: 32."""


class MultiHashConfig(Section):
    """Kind `multihash`: codes in tables by several of their pieces; a query looks up its own and those close to it."""

    nhash: PositiveInt | None = None
    """Pieces of a code, each with a table of its own. Default: 4, or as many as fit."""
    hash_bits: Annotated[int, Field(ge=1, le=62)] | None = None
    """Bits of a piece. Default: 16, less for a shard of less than 65,536 codes."""
    nflip: NonNegativeInt | None = None
    """Bits of a piece that may differ: more find more, in far more time. Default: 2."""


class HnswConfig(Section):
    """Kind `hnsw`: a graph of neighbors that a query walks along."""

    m: Annotated[int, Field(ge=2, le=256)] | None = None
    """Links of a code, twice as many on the lowest level, 4 bytes each. Default: 16."""
    ef_search: PositiveInt | None = None
    """Candidates that a query keeps on its way: more find more, in more time. Default: 256."""


class IndexConfig(JobConfig):
    """Build a new version of an index from code tables and switch OUTPUT/CURRENT to it.

    With --append the new version follows the code tables as they are now: it lists the shards of the version before,
    hides the rows that are gone and adds small shards for new ones. With --compact the same rows go into fresh shards.
    Exact answers are those of an index built anew, and older versions stay as they are.
    """

    codes: str = ""
    """A code table directory; several: separated by commas (their ids must not overlap). With --append: tables to add
    to those that the index has."""
    output: str
    """The index directory."""
    kind: IndexKind = "flat"
    """How shards are searched. Exact: `flat` compares all codes; `unique` only those that differ, for codes of which
    many are equal; `table` looks codes of 16 bits up, in time that does not grow with their number. Approximate, by a
    structure of FAISS that is built and stored with each shard, and whose recall is measured and recorded: `ivf`,
    `multihash`, `hnsw`. A radius is answered exactly by every kind. --append and --compact keep the kind that the index
    has, with its parameters, whether named or not."""
    ivf: IvfConfig = IvfConfig()
    """Parameters of kind ivf."""
    multihash: MultiHashConfig = MultiHashConfig()
    """Parameters of kind multihash."""
    hnsw: HnswConfig = HnswConfig()
    """Parameters of kind hnsw."""
    append: bool = False
    """Follow the current version's code tables: only parts that are new or gone are read."""
    compact: bool = False
    """Write the current version's rows, from the same versions of its code tables, into fresh shards. Worth it once
    appending has left many small shards or many hidden rows."""
    switch: str = ""
    """Build nothing: make this version, as v000001, the current one, back or forward. A running service follows."""
    bits: PositiveInt | None = None
    """Index the first bits of the codes alone, a shorter code of a nested encoder: queries are cut alike. Default: all.
    --append and --compact keep what the index has."""
    shards: PositiveInt | None = None
    """Index shards, contiguous ranges of ids. Default: 1; with --compact as many as shards of the largest's size need;
    with --append new shards are no larger than the largest."""
    rows: bool = True
    """Keep the rows of the code tables beside the codes. With --no-rows answers are ids and distances, without keys,
    labels and originals, and a shard takes no more room than its codes (and their ids, where these have gaps): 8 GB for
    a billion codes of 64 bits. --append and --compact keep what the index has."""
    bytes_per_shard: str = ""
    """Instead: the most memory that codes and ids of a shard may take, as in 256MB or 1GiB. With --append: of a new
    shard."""

    @property
    def parameters(self) -> dict[str, int]:
        """Those of the kind that are not left to the size of a shard."""
        return _asked(getattr(self, self.kind)) if self.kind in APPROXIMATE else {}

    @property
    def shard_bytes(self) -> int:
        """Bytes of codes and ids in a shard, at most; 0 where they are not limited."""
        return parse_size(self.bytes_per_shard) if self.bytes_per_shard else 0

    @model_validator(mode="after")
    def _check(self) -> "IndexConfig":
        if self.append and self.compact:
            raise ValueError("append and compact exclude each other")
        if self.compact and self.codes:
            raise ValueError("codes: --compact keeps the code tables that the index has; --append adds one")
        if self.switch and (self.codes or self.append or self.compact):
            raise ValueError("switch: builds nothing, so neither codes nor append nor compact go with it")
        if not (self.codes or self.append or self.compact or self.switch):
            raise ValueError("codes: a code table is needed (unless --append, --compact or --switch)")
        if self.bits is not None:
            if self.append or self.compact or self.switch:
                raise ValueError("bits: only for an index that is built anew")
            check_lengths((self.bits,))
        for kind in sorted(APPROXIMATE):
            if kind != self.kind and (asked := _asked(getattr(self, kind))):
                raise ValueError(f"{kind}.{next(iter(asked))}: only with --kind {kind}")
        if self.append and self.shards is not None:
            raise ValueError("shards: not with --append, which keeps the shards that are there")
        if self.bytes_per_shard:
            if self.shards is not None:
                raise ValueError("shards and bytes_per_shard exclude each other")
            try:
                parse_size(self.bytes_per_shard)
            except ValueError as error:
                raise ValueError(f"bytes_per_shard {error}") from None
        return self


def _asked(section: Section) -> dict[str, int]:
    return section.model_dump(exclude_none=True)


class RetrieveConfig(ShardSearchConfig):
    """Find the neighbors of every row of a code table, Parquet in, Parquet out, without the service."""

    index: str
    """The index directory."""
    queries: str
    """The code table of the queries."""
    output: str
    """Where the neighbor table goes; a rerun continues where an earlier one stopped."""
    k: PositiveInt = 100
    """Neighbors per query."""
