"""What a person writes to serve an index, and to search in one.

Knows nothing of the command line and of how requests are answered.
"""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config import JobConfig, PositiveFinite
from cluster.index_config import ShardSearchConfig


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
