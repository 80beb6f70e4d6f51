"""What goes over the wire: the models of requests and answers, and the limits of a request.

Knows nothing of HTTP servers, Ray or the index. A request that cannot be answered raises `RequestRefused` with the
HTTP status and one line that names field, position, value given and value expected.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from cibhash.asymmetric import Weights
from cibhash.errors import CIBHashError
from cibhash.types import Codes

ARROW_TYPE = "application/vnd.apache.arrow.stream"
JSON_TYPE = "application/json"
MAX_NEIGHBORS = 10_000_000
"""Neighbors (queries * k, or all within the radius) of one Arrow answer; 12 bytes each."""
MAX_JSON_NEIGHBORS = 500_000
"""Neighbors of one JSON answer, which also carries keys and labels."""
DEFAULT_K = 10
"""Neighbors of a query that names neither k nor radius."""
MAX_ID = 2**63 - 1


class RequestRefused(CIBHashError):
    """A request that cannot be answered: HTTP status and one line for a person."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type["RequestRefused"], tuple[int, str]]:
        return RequestRefused, (self.status, str(self))


@dataclass(frozen=True)
class Limits:
    """What one request may ask of an index with codes of `bits`."""

    bits: int
    max_k: int
    max_queries: int
    encoder_digest: str = ""
    """Of the index."""


class Wanted(BaseModel):
    """How many neighbors: exactly one of `k` and `radius`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    k: StrictInt | None = None
    """Neighbors per query; more than the index holds gives all that it holds."""
    radius: StrictInt | None = None
    """All neighbors within this Hamming distance, inclusive."""
    allow_partial: StrictBool = False
    """Answer from the shards that answer, flagged, instead of 503."""
    with_codes: StrictBool = False
    """Also the codes of queries and neighbors, in JSON answers."""
    encoder_digest: StrictStr | None = None
    """Of the encoder that made the codes of the request, or how it begins: a service of another one refuses them."""
    rerank: StrictInt | None = None
    """Of an image: take this many nearest, order them by asymmetric distance, and answer with the first k."""


Id = Annotated[StrictInt, Field(ge=0, le=MAX_ID)]


class SearchRequest(Wanted):
    """Body of `POST /search`: exactly one of `codes`, `keys` and `ids`."""

    codes: list[StrictStr] | None = None
    """Packed codes, each as 2 hex digits per byte or as standard base64."""
    keys: list[StrictStr] | None = None
    ids: list[Id] | None = None


@dataclass(frozen=True)
class Query:
    """A checked request: exactly one of `codes`, `keys` and `ids` is not empty, one of `k` and `radius` not None."""

    wanted: Wanted
    codes: Codes | None = None
    """uint8 (Q, B/8)."""
    weights: Weights | None = None
    """Of the bits, for `rerank`, int32 (Q, B)."""
    keys: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Coverage(BaseModel):
    """Which part of the index an answer comes from."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    partial: bool
    coverage: float
    """Share of the index's codes in the shards that answered; 1.0 for an empty index."""
    shards_total: int
    shards_answered: int
    missing_shards: tuple[str, ...]
    encoder_digest: str
    index_version: str


class Item(BaseModel):
    """One row of the index."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    id: int
    key: str
    labels: tuple[int, ...]
    code: str = ""
    """Packed, as hex; absent unless it was asked for."""


class Neighbor(Item):
    """One row of the index and its Hamming distance to the query."""

    distance: int
    weighted_distance: int = 0
    """Asymmetric distance, 0 to 1023; absent unless the answer was reranked."""


class SearchAnswer(Coverage):
    """Answer of `POST /search` and `POST /search/image` as JSON."""

    neighbors: list[list[Neighbor]]
    """Per query, ordered by (distance, id); a query that is in the index is its own neighbor."""
    seconds: float
    query_codes: list[str] = []
    """Packed, as hex; absent unless codes were asked for."""


class RandomAnswer(Coverage):
    """Answer of `GET /random`."""

    images: list[Item]


class ShardStats(BaseModel):
    """One slot of the service, and its part of the index."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)
    name: str
    count: int
    ready: bool


class StatsAnswer(Coverage):
    """Answer of `GET /stats`."""

    count: int
    bits: int
    prefixes: tuple[int, ...]
    kind: str
    max_k: int
    max_queries: int
    max_body_bytes: int
    shards: list[ShardStats]
    bare: bool = False
    """Whether the index was built without rows: it has no keys, labels and originals."""
    pending: str = ""
    """Why the version that `CURRENT` names is not the one that is served; empty: it is."""
    change: str = ""
    """What the last switch of versions brought, if it was to another encoder."""
