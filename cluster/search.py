"""The `search` job: neighbors of image files, keys, ids or codes, from a service or straight from an index.

Knows nothing of Ray: without a service the whole index is loaded into this process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cibhash.binary import prefix
from cibhash.encoder import encode
from cibhash.errors import BadImage, ConfigError, NotFound
from cibhash.images import decode_image
from cibhash.types import PADDING_ID, Codes, RangeNeighbors
from cibhash.views import eval_view
from cluster import storage
from cluster.client import SearchClient, read_token
from cluster.encoders import open_encoder
from cluster.index.merge import merge_neighbors, merge_ranges
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import OpenIndex, open_index
from cluster.manifests import same_encoder
from cluster.service.request_parsing import parse_codes
from cluster.service.schema import DEFAULT_K, MAX_ID, RequestRefused, SearchAnswer
from cluster.service_config import SearchConfig
from cluster.service_errors import RequestRejected

Kind = Literal["image", "key", "id", "code"]


@dataclass(frozen=True)
class FoundNeighbor:
    """One row of the index and its Hamming distance to the query."""

    id: int
    distance: int
    key: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FoundQuery:
    """One query as it was given, and its neighbors ordered by (distance, id)."""

    query: str
    neighbors: tuple[FoundNeighbor, ...]


@dataclass(frozen=True)
class SearchResult:
    """Answer of the job, queries in the order of the config."""

    queries: tuple[FoundQuery, ...]
    index_version: str
    encoder_digest: str


@dataclass(frozen=True)
class _Query:
    text: str
    kind: Kind
    value: str


@dataclass(frozen=True)
class _Answers:
    neighbors: tuple[tuple[FoundNeighbor, ...], ...]
    index_version: str
    encoder_digest: str


def search(config: SearchConfig) -> SearchResult:
    """Neighbors of every query of the config.

    Raises:
        ConfigError: a query, k or radius that cannot work; names it.
        NotFound: a file, key, id or index that does not exist.
        BadImage: a file that is not a readable image.
        ManifestMismatch: the encoder is not the one that made the index.
        ServiceUnavailable: the service does not answer.
    """
    k = DEFAULT_K if config.k is None and config.radius is None else config.k
    queries = [_parse(text) for text in config.query]
    answers = _ask_service(config, queries, k) if config.url else _ask_index(config, queries, k)
    found = tuple(FoundQuery(q.text, near) for q, near in zip(queries, answers.neighbors, strict=True))
    return SearchResult(found, answers.index_version, answers.encoder_digest)


def format_table(result: SearchResult, width: int = 100) -> str:
    """The result as a table for a terminal, one block per query."""
    console = Console(width=width)
    with console.capture() as capture:
        for found in result.queries:
            table = Table(title=found.query, title_justify="left", box=None, pad_edge=False)
            for heading in ("rank", "distance", "id"):
                table.add_column(heading, justify="right")
            table.add_column("key", overflow="fold")
            table.add_column("labels")
            for rank, near in enumerate(found.neighbors, 1):
                labels = ",".join(map(str, near.labels))
                table.add_row(str(rank), str(near.distance), str(near.id), near.key, labels)
            console.print(table, markup=False) if found.neighbors else console.print(
                f"{found.query}: no neighbors", markup=False
            )
    return capture.get()


def _parse(text: str) -> _Query:
    for kind in ("key", "id", "code"):
        if text.startswith(f"{kind}:"):
            value = text.partition(":")[2]
            if kind == "id" and not (value.isascii() and value.isdigit() and int(value) <= MAX_ID):
                raise ConfigError(f"{text}: expected id:NUMBER")
            if not value:
                raise ConfigError(f"{text}: nothing after the colon")
            return _Query(text, kind, value)
    return _Query(text, "image", text)


def _ask_service(config: SearchConfig, queries: Sequence[_Query], k: int | None) -> _Answers:
    client = SearchClient(config.url, read_token(config.token_file))
    wanted = {"k": k} if k is not None else {"radius": config.radius}
    by_kind: dict[Kind, Callable[[list[str]], SearchAnswer]] = {
        "key": lambda values: client.search_keys(values, **wanted),
        "id": lambda values: client.search_ids([int(value) for value in values], **wanted),
        "code": lambda values: client.search_hex(values, **wanted),
    }
    neighbors: list[tuple[FoundNeighbor, ...]] = [()] * len(queries)
    answers: list[SearchAnswer] = []
    for kind, ask in by_kind.items():
        places = [place for place, query in enumerate(queries) if query.kind == kind]
        if places:
            answers.append(ask([queries[place].value for place in places]))
            for place, found in zip(places, _rows(answers[-1]), strict=True):
                neighbors[place] = found
    for place, query in enumerate(queries):
        if query.kind == "image":
            try:
                answers.append(client.search_image(storage.read_bytes(query.value), **wanted))
            except BadImage as error:
                raise BadImage(f"{query.text}: {error}") from None
            neighbors[place] = _rows(answers[-1])[0]
    if len({(answer.index_version, answer.encoder_digest) for answer in answers}) > 1:
        raise RequestRejected(f"{config.url}: its index changed between two queries; search again")
    return _Answers(tuple(neighbors), answers[-1].index_version, answers[-1].encoder_digest)


def _rows(answer: SearchAnswer) -> list[tuple[FoundNeighbor, ...]]:
    return [tuple(FoundNeighbor(n.id, n.distance, n.key, n.labels) for n in near) for near in answer.neighbors]


def _ask_index(config: SearchConfig, queries: Sequence[_Query], k: int | None) -> _Answers:
    index = open_index(config.index)
    manifest = index.manifest
    if config.radius is not None and config.radius > manifest.bits:
        raise ConfigError(f"radius {config.radius}: the codes have {manifest.bits} bits")
    shards = [ShardIndex.load(index.base_uri, entry, manifest.bits, kind=manifest.kind) for entry in manifest.shards]
    keys = [query.text for query in queries if query.kind == "key"]
    if keys and manifest.bare:
        raise ConfigError(f"{keys[0]}: {index.uri} was built without rows (--no-rows), so it has no keys; search by id")
    codes = _codes(config, queries, index, shards)
    if k is not None:
        kept = max(1, min(k, manifest.count))
        nearest = merge_neighbors([shard.search(codes, kept) for shard in shards], kept)
        rows = [(ids[ids != PADDING_ID], near[ids != PADDING_ID]) for ids, near in zip(*nearest, strict=True)]
    else:
        within = merge_ranges([shard.range_search(codes, config.radius or 0) for shard in shards])
        rows = [_slice(within, number) for number in range(len(codes))]
    wanted = np.unique(np.concatenate([ids for ids, _ in rows]))
    known = {row.id: row for shard in shards for row in shard.rows_by_id(wanted) if row is not None}
    neighbors = tuple(
        tuple(
            FoundNeighbor(row_id, distance, known[row_id].key, known[row_id].labels)
            for row_id, distance in zip(ids.tolist(), distances.tolist(), strict=True)
        )
        for ids, distances in rows
    )
    return _Answers(neighbors, manifest.version, manifest.encoder_digest)


def _slice(within: RangeNeighbors, number: int) -> tuple[np.ndarray, np.ndarray]:
    rows = slice(within.limits[number], within.limits[number + 1])
    return within.ids[rows], within.distances[rows]


def _codes(config: SearchConfig, queries: Sequence[_Query], index: OpenIndex, shards: Sequence[ShardIndex]) -> Codes:
    """Packed codes (Q, B/8) of all queries."""
    bits = index.manifest.bits
    images = [query.value for query in queries if query.kind == "image"]
    encoder_uri = config.encoder or index.manifest.encoder_uri
    encoded: Iterator[Codes] = iter(_encode_files(images, encoder_uri, index)) if images else iter(())
    return np.stack([next(encoded) if q.kind == "image" else _code(q, bits, shards) for q in queries])


def _encode_files(paths: Sequence[str], encoder_uri: str, index: OpenIndex) -> Codes:
    encoder = open_encoder(encoder_uri)
    same_encoder((index.uri, index.manifest.encoder_digest), (encoder_uri, encoder.digest))
    views = []
    for path in paths:
        try:
            views.append(eval_view(decode_image(storage.read_bytes(path)), encoder.spec.image_size))
        except BadImage as error:
            raise BadImage(f"{path}: {error}") from None
    return prefix(encode(encoder, torch.from_numpy(np.stack(views))).codes, index.manifest.bits)


def _code(query: _Query, bits: int, shards: Sequence[ShardIndex]) -> Codes:
    if query.kind == "code":
        try:
            code: Codes = parse_codes([query.value], bits)[0]
        except RequestRefused as error:
            raise ConfigError(f"{query.text}: {str(error).partition(': ')[2]}") from None
        return code
    if query.kind == "id":
        row_id = int(query.value)
    else:  # a key of several shards: the smallest id, as of one
        row_id = min((i for shard in shards for i in shard.ids_by_key([query.value]).values()), default=-1)
    for shard in shards:
        found = shard.codes_by_id([row_id]).get(row_id)
        if found is not None:
            return np.frombuffer(found, np.uint8)
    raise NotFound(f"{query.text}: not in the index")
