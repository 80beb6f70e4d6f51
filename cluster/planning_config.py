"""What a person writes to plan an index.

Knows nothing of the command line and of how anything is predicted.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config import CodeLengths, JobConfig, PositiveFinite, Seed, check_lengths
from cluster.index.kinds import IndexKind
from cluster.sizes import parse_size

NonNegativeFinite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
EVERY_KIND: tuple[IndexKind, ...] = ("flat", "unique", "table", "ivf", "hnsw", "multihash")


class PlanConfig(JobConfig):
    """Choose code length, kind, shards and replicas of an index, from a sample of its codes and what is asked of it.

    Time per comparison and recall are measured here, on codes like the sample's; memory, latency, queries per second
    and recall of ITEMS codes are predicted from that. Chosen is what needs the fewest nodes, then the least latency.
    Run it on a machine like the nodes.

      cibhash plan --codes codes/sample --items 100000000 --memory-per-node 16GiB --cpus-per-node 8 --latency-ms 50

    Exit code 2 where nothing fulfils everything: the last line names what fails, and by how much.
    """

    codes: str
    """The code table of the sample: some thousand codes, as the corpus has them; with labels, lengths are compared by
    mAP."""
    items: PositiveInt
    """Codes of the corpus."""
    output: str = ""
    """Where plan.json goes; empty: the plan is only shown."""
    memory_per_node: str = "16GiB"
    """Memory of a node, as in 64GB or 16GiB."""
    reserved_per_node: str = "2GiB"
    """Of it, what is not for shards: Ray, what answers HTTP, the query encoder."""
    cpus_per_node: PositiveInt = 8
    """Cores of a node."""
    max_nodes: NonNegativeInt = 0
    """The most nodes; 0: any number."""
    latency_ms: NonNegativeFinite = 0.0
    """The most time a request may take while nothing else is asked, p50; 0: any."""
    queries_per_second: NonNegativeFinite = 0.0
    """Queries that are to be answered per second; 0: any number."""
    queries_per_request: PositiveInt = 1
    """Queries that come in one request: in blocks they take less time each."""
    recall: Annotated[float, Field(ge=0, le=1)] = 0.95
    """The least share of the k nearest codes that is to be found; 1: only exact kinds."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.95
    """The least quality of a code length, as a share of the best one's: mAP@k where the sample has labels, else the
    share of the k nearest that the longest code agrees with."""
    k: PositiveInt = 100
    """Neighbors per query."""
    bits: CodeLengths = ()
    """Code lengths to choose from; default: those the encoder was trained for."""
    kinds: tuple[IndexKind, ...] = EVERY_KIND
    """Kinds to choose from."""
    contiguous: bool = False
    """Ids of a shard have no gaps, as without quarantined or deleted images: they then take no memory."""
    overhead_ms: NonNegativeFinite = 25.0
    """What a request takes beside the search: HTTP and hops of Serve. Default: measured on two cores (RESULTS.md)."""
    hop_cpu_ms: NonNegativeFinite = 7.0
    """Time of a core that a hop of Serve takes; a request has two, and one more per shard. Default: as above."""
    calibration_seconds: PositiveFinite = 20.0
    """About how long is measured."""
    clock: Literal["cpu", "wall"] = "cpu"
    """What times are of: `cpu`, the time of a core that a search takes, which is what it takes where a core is free;
    `wall`, with whatever else this machine does."""
    sample_rows: Annotated[int, Field(ge=100)] = 100_000
    """The most codes that are taken of the sample."""
    seed: Seed = 0
    """Of what is drawn from the sample."""
    verify: bool = False
    """Build the chosen index over codes like the sample's, and hold memory, time and recall against what was
    predicted."""
    verify_items: NonNegativeInt = 0
    """Codes of that index; 0: all, but no more than are built in about a minute and a quarter of this machine's free
    memory holds."""

    @property
    def node_bytes(self) -> int:
        """Memory of a node."""
        return parse_size(self.memory_per_node)

    @property
    def reserved_bytes(self) -> int:
        """Memory of a node that is not for shards."""
        return parse_size(self.reserved_per_node)

    @model_validator(mode="after")
    def _check(self) -> "PlanConfig":
        check_lengths(self.bits)
        for name in ("memory_per_node", "reserved_per_node"):
            try:
                parse_size(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        if self.reserved_bytes >= self.node_bytes:
            raise ValueError(
                f"reserved_per_node {self.reserved_per_node}: leaves nothing of memory_per_node {self.memory_per_node}"
            )
        if not self.kinds:
            raise ValueError("kinds: at least one is needed")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds {' '.join(self.kinds)}: one is named twice")
        if self.verify_items and not self.verify:
            raise ValueError("verify_items: only with --verify")
        if self.verify_items > self.items:
            raise ValueError(f"verify_items {self.verify_items}: more than items {self.items}")
        return self
