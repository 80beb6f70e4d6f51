"""What a person writes to run a job: one frozen model per job, unknown fields refused.

Knows nothing of the command line; `jobs.config_loader` fills these from a YAML recipe and overrides. No field reads the
environment. Batch sizes are global. Locations are plain paths or `s3://bucket/prefix`.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from cluster.evaluation.methods import OUR_NAME, check_names
from cluster.index.kinds import APPROXIMATE, IndexKind
from cluster.sizes import parse_size


def _split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


def _ascending(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(lengths))


def check_lengths(lengths: tuple[int, ...]) -> None:
    """Refuses a code length that cannot be, or comes twice."""
    for bits in lengths:
        if bits % 8 or not 8 <= bits <= 512:
            raise ValueError(f"{bits} bits: a code length is a multiple of 8 from 8 to 512")
    if len(set(lengths)) != len(lengths):
        raise ValueError(f"{','.join(map(str, lengths))}: a code length is named twice")


CodeLengths = Annotated[tuple[int, ...], BeforeValidator(_split_list), AfterValidator(_ascending)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split_list)]
WholeNumbers = Annotated[tuple[int, ...], BeforeValidator(_split_list)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of everything in a config: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RayConfig(Section):
    """Where Ray runs."""

    address: str = ""
    """Address of a running cluster. Empty: the cluster that `ray job submit` runs this in, else a private local Ray
    that ends with the command."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of the private local Ray; default: the real ones, at least 8."""


class JobConfig(Section):
    """Base of the job configs."""

    ray: RayConfig = RayConfig()
    """Where Ray runs."""
    dry_run: bool = False
    """Print the resolved plan and touch nothing."""


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


class EncodeConfig(JobConfig):
    """Encode every image of a dataset into a code table at OUTPUT."""

    encoder: str
    """The encoder directory."""
    dataset: str
    """The dataset directory."""
    output: str
    """Where the code table goes; a rerun continues where an earlier one stopped. Over a dataset that grew or changed, a
    new version of the table keeps what is unchanged."""
    moved: bool = False
    """Continue a table whose dataset was elsewhere before."""
    num_workers: PositiveInt = 1
    """Encoding actors."""
    threads_per_worker: PositiveInt = 2
    """CPU threads of each actor."""
    use_gpu: bool = False
    """One GPU per actor."""
    decoders: NonNegativeInt | None = None
    """CPU workers that decode for each actor, anywhere in the cluster; 0: the actor's own threads. Default: 8 for an
    actor with a GPU, else 0."""
    batch_size: PositiveInt | None = None
    """Images per forward pass; halved where memory does not suffice. Default: 1,024 on a GPU, 128 on CPUs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: faster where the hardware has it; some bits near the threshold differ."""
    compiled: bool = False
    """Have torch compile the backbone: a minute at the start, then faster."""
    features: bool = False
    """Also write the backbone's float features (for baselines and the float upper bound)."""
    logits: bool = False
    """Also write the logits, for asymmetric query distance."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of images that may be refused (10 images always may); above it the job fails."""


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


class ServeConfig(ShardSearchConfig):
    """Serve an index and its search page over HTTP until interrupted."""

    index: str
    """The index directory."""
    encoder: str = ""
    """The encoder directory, for image queries; default: the one the index was built with. A version by another encoder
    is served with that one."""
    host: str = "127.0.0.1"
    """Address to bind. Beyond loopback a token file is required."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the service."""
    replicas: PositiveInt = 1
    """Replicas of every shard, of what encodes images, and of what answers HTTP."""
    token_file: str = ""
    """File with the bearer tokens that may query, one per line."""
    slots: PositiveInt | None = None
    """Deployments that the index shards are dealt to; default: as many as the index has shards when it starts."""
    shard_deadline_s: PositiveFinite = 5.0
    """Time a shard has to answer."""
    hedge_s: PositiveFinite = 0.5
    """With several replicas: another one is asked too when the first has not answered after so long."""
    watch_s: PositiveFinite = 5.0
    """Time between two looks for a new version of the index; it is served once all shards have loaded it."""
    max_in_flight: PositiveInt = 64
    """Requests that a replica of what answers HTTP answers at a time; those beyond wait."""
    max_wait_s: PositiveFinite = 1.0
    """So long a request waits for its turn before it is told to come back (503, Retry-After)."""
    max_k: PositiveInt = 10_000
    """Largest k of a request."""
    max_queries: PositiveInt = 10_000
    """Largest number of queries of a request."""
    max_body_bytes: PositiveInt = 32 * 2**20
    """Largest body of a request."""


class SearchConfig(JobConfig):
    """Find the neighbors of image files, keys (key:NAME), ids (id:NUMBER) or codes (code:HEX)."""

    query: tuple[str, ...] = ()
    """Image files, or key:NAME, id:NUMBER, code:HEX."""
    index: str = ""
    """The index directory (exactly one of index and url)."""
    url: str = ""
    """Address of a running service (exactly one of index and url)."""
    encoder: str = ""
    """The encoder directory, for image files; default: the one the index was built with."""
    token_file: str = ""
    """File with the service's bearer token."""
    k: PositiveInt | None = None
    """Neighbors per query; default 10."""
    radius: NonNegativeInt | None = None
    """Instead of k: all neighbors within this Hamming distance (inclusive)."""

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if not self.query:
            raise ValueError("query: at least one image file, key:NAME, id:NUMBER or code:HEX is needed")
        if bool(self.index) == bool(self.url):
            raise ValueError("exactly one of index and url is needed")
        if self.k is not None and self.radius is not None:
            raise ValueError("k and radius exclude each other")
        return self


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


class ComparedTables(NamedTuple):
    """The code tables of an encoder to compare with, and what it is called."""

    name: str
    queries: str
    database: str


def _compared_tables(text: str) -> ComparedTables:
    """Splits `NAME=QUERIES,DATABASE`."""
    name, _, tables = text.partition("=")
    parts = [part.strip() for part in (name, *tables.split(","))]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"compare {text!r}: expected NAME=QUERIES,DATABASE, a name and two code tables")
    return ComparedTables(*parts)


class EvaluateConfig(JobConfig):
    """Evaluate retrieval of one code table against another, exactly, and write the report."""

    queries: str
    """Code table of the queries, with labels. With logits too (encoded with --logits), their asymmetric distance is
    evaluated beside the Hamming distance."""
    database: str
    """Code table of the database, with labels."""
    output: str
    """Where metrics.json, queries.parquet, metrics.md and report.html go."""
    k: PositiveInt = 1000
    """Ranks of mAP@k, precision@k and recall@k."""
    bits: CodeLengths = ()
    """Prefix lengths to evaluate; default: those the encoder was trained for."""
    baseline_fit: str = ""
    """Code table with features to fit random hyperplanes, PCA-sign and PCA-ITQ on; they are then evaluated on the
    features of queries and database (all three encoded with --features)."""
    seed: Seed = 0
    """Seed of the baselines."""
    stored_order: bool = False
    """Evaluate mAP@k with equal distances in the order of ids too, as code that sorts a stored database does: for
    comparison with published numbers. It ranks, so it costs more than all the rest. Where the tables have features,
    also how many of the most similar by these are among the nearest codes."""
    exclude_self: bool = False
    """A query that is in the database too does not count for itself: by id where both tables are of one dataset, else
    by key."""
    exclude: str = ""
    """Parquet or CSV file of more pairs that do not count, with the columns query_id and database_id."""
    example_queries: NonNegativeInt = 8
    """Query images shown with their neighbors in the report: half of them the best, half the worst."""
    title: str = ""
    """Heading of the report; default: the dataset's name."""
    name: str = OUR_NAME
    """What tables and plots call the encoder of queries and database."""
    protocol: str = ""
    """Protocol of the tables, as cifar10 (`cibhash reproduce` has the same names): numbers published under it are shown
    beside, with where they are from. k must be the protocol's."""
    compare: tuple[str, ...] = ()
    """Other encoders to show beside it, each as NAME=QUERIES,DATABASE: its code tables of the same images. Lengths are
    compared that both were trained for, over the same queries."""

    @property
    def compared_tables(self) -> tuple[ComparedTables, ...]:
        """`compare`, taken apart."""
        return tuple(_compared_tables(text) for text in self.compare)

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        check_lengths(self.bits)
        check_names(self.name, tuple(tables.name for tables in self.compared_tables))
        return self


class DemoConfig(JobConfig):
    """Run the whole path on 1,797 handwritten digits: pack, train, encode, index, evaluate, serve."""

    output: str = "demo"
    """Where everything goes."""
    serve: bool = True
    """Serve the search page at the end, until interrupted."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the search page."""
    seed: Seed = 0
    """Of split, weights and views."""
