"""The k nearest training images of every training image: exact, by Ray tasks over pairs of blocks of images.

Knows nothing of how features were made and of what the graph is for. The similarity of two images is the centered
cosine of their mean features: mean over views, L2 normalized, minus the mean over all images, L2 normalized again,
inner product. Neighbors are ordered by (-similarity, row).

The graph does not depend on how the images are cut into blocks, on the order in which tasks end, or on the device:
normalized vectors lie on a grid on which the mean and all inner products are exact (`exact_neighbors`).

Retry-safe: a block of neighbors is written once it is complete, and its record after it; `graph.json` comes last and is
create-only. A lost task is started again by Ray. Normalized vectors lie in a folder `vectors-*` of the run's own,
removed at its end; a run that is killed leaves it behind.
"""

import contextlib
import hashlib
import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import ray
import safetensors.numpy
from pydantic import ValidationError
from safetensors import SafetensorError

from cibhash.errors import AlreadyExists, ConfigError, DataError, ManifestMismatch, NotFound
from cibhash.types import Ids
from cluster import storage
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import ListedFile, Manifest, create_manifest, load_manifest, read_verified
from cluster.telemetry import log, progress
from cluster.training.exact_neighbors import GPU_MAX_K, Floats, Nearest, Vectors, centered, merge, nearest, unit_length

BLOCK_ROWS = 16384
"""Images per side of a task, so that it holds about 4 * BLOCK_ROWS * D * 4 bytes."""


@dataclass(frozen=True)
class FeatureBlock:
    """Consecutive training images and the files of their features, one file per cached view."""

    first_row: int
    """Of the first image, counted over all blocks."""
    num_rows: int
    uris: tuple[str, ...]
    """Safetensors files with the float tensor `features` (num_rows, D): the same images in each."""


class GraphManifest(Manifest):
    """`graph.json`: the nearest neighbors of all training images, complete."""

    file_name: ClassVar[str] = "graph.json"
    noun: ClassVar[str] = "neighbor graph"
    format: Literal["cibhash-graph-1"] = "cibhash-graph-1"
    key: str
    """Names what the graph was made of; given by whoever builds it."""
    k: int
    rows: int
    """Images."""
    parts: tuple[ListedFile, ...]
    """Safetensors files with the tensor `neighbors` int64 (N, k), in the order of the images."""


class _Group(NamedTuple):
    """Blocks that one task takes together, in one run."""

    blocks: tuple[FeatureBlock, ...]
    name: str
    """Of its files: the rows, and everything else that decides their content."""
    vectors_uri: str

    @property
    def rows(self) -> range:
        return range(self.blocks[0].first_row, self.blocks[-1].first_row + self.blocks[-1].num_rows)


def build_graph(
    blocks: Sequence[FeatureBlock],
    *,
    k: int,
    folder: str,
    key: str,
    use_gpu: bool = False,
    block_rows: int = BLOCK_ROWS,
) -> Ids:
    """Finds what is missing of the graph, inside a Ray session, and returns it.

    Args:
        blocks: All training images, in order. Ray tasks read the URIs and `folder`, so every node must reach them.
        k: Neighbors per image, fewer than there are images. An image is not its own neighbor.
        folder: URI of the graph's own folder; blocks of neighbors that an earlier run finished are verified and kept.
        key: Names what the graph is made of; another key must come with other features, and the other way round.
        use_gpu: Whether every search takes one of Ray's GPUs.
        block_rows: Images per side of a search at most; consecutive blocks are taken together up to that number. The
            graph is the same; a GPU is used better with more than the default.

    Returns:
        Rows of the neighbors, nearest first, int64 (N, k).

    Raises:
        ConfigError: k is not below the number of images or too large for a GPU, or there is no GPU or no FAISS.
        DataError: a file has no finite features of the block's rows, or another number of columns; names the URI.
        ManifestMismatch: the folder has a complete graph of another key or k, or a file of it is damaged.
        ValueError: k is below 1, or the blocks leave out or repeat rows.
    """
    num_images = _num_images(blocks)
    _check_k(k, num_images, use_gpu)
    folder = storage.absolute(folder)
    if not storage.exists(storage.join(folder, GraphManifest.file_name)):
        groups = _groups(blocks, block_rows, folder, f"{key} {k} {num_images}")
        parts = {number: part for number, group in enumerate(groups) if (part := _finished(folder, group))}
        todo = [number for number in range(len(groups)) if number not in parts]
        if parts:
            log("neighbor graph: kept", blocks=len(parts), missing=len(todo))
        if todo:
            try:
                parts |= _search_all(groups, todo, folder, k, use_gpu)
            finally:
                for group in groups:
                    storage.remove(group.vectors_uri)
        listed = tuple(parts[number] for number in range(len(groups)))
        with contextlib.suppress(AlreadyExists):  # another run of the same job; its graph is checked below
            create_manifest(folder, GraphManifest(key=key, k=k, rows=num_images, parts=listed))
    graph = load_graph(folder, key)
    if graph.shape != (num_images, k):
        raise ManifestMismatch(f"{folder}: a graph {graph.shape} under key {key!r}, expected {(num_images, k)}")
    return graph


def load_graph(folder: str, key: str) -> Ids:
    """Rows of the neighbors, nearest first, int64 (N, k).

    Raises:
        NotFound: the graph is not complete.
        ManifestMismatch: it was made of something else than `key` names, or a file differs from its digest.
    """
    manifest = load_manifest(GraphManifest, folder)
    if manifest.key != key:
        raise ManifestMismatch(f"{folder}: the neighbor graph was made of {manifest.key!r}, expected {key!r}")
    parts = [safetensors.numpy.load(read_verified(folder, part))["neighbors"] for part in manifest.parts]
    return np.concatenate(parts)


def _num_images(blocks: Sequence[FeatureBlock]) -> int:
    rows = 0
    for block in blocks:
        if block.first_row != rows or block.num_rows < 1 or not block.uris:
            raise ValueError(f"{block} after {rows} rows, expected first_row {rows}, num_rows and uris")
        rows += block.num_rows
    return rows


def _check_k(k: int, num_images: int, use_gpu: bool) -> None:
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    if k >= num_images:
        raise ConfigError(f"{k} neighbors per image, but there are only {num_images} images: expected fewer neighbors")
    if use_gpu and k > GPU_MAX_K:
        raise ConfigError(f"{k} neighbors per image, but a GPU finds at most {GPU_MAX_K}")


def _groups(blocks: Sequence[FeatureBlock], block_rows: int, folder: str, content: str) -> list[_Group]:
    together: list[list[FeatureBlock]] = []
    for block in blocks:
        if together and block.first_row + block.num_rows - together[-1][0].first_row <= block_rows:
            together[-1].append(block)
        else:
            together.append([block])
    digest, groups = hashlib.sha256(content.encode()).hexdigest()[:16], []
    vectors = storage.join(folder, f"vectors-{secrets.token_hex(8)}")
    for members in together:
        name = f"rows-{members[0].first_row:09d}-{members[-1].first_row + members[-1].num_rows:09d}-{digest}"
        groups.append(_Group(tuple(members), name, storage.join(vectors, f"{name}.safetensors")))
    return groups


def _finished(folder: str, group: _Group) -> ListedFile | None:
    """The block of neighbors that an earlier run wrote, if it is whole."""
    record = storage.join(folder, f"{group.name}.json")
    if not storage.exists(record):
        return None
    try:
        part = ListedFile.model_validate_json(storage.read_bytes(record))
        read_verified(folder, part)
    except (ValidationError, DataError, NotFound) as error:
        log("neighbor graph: a block is made again", reason=" ".join(str(error).split()))
        return None
    return part


def _search_all(groups: list[_Group], todo: list[int], folder: str, k: int, use_gpu: bool) -> dict[int, ListedFile]:
    """Writes the neighbors of the groups `todo` among all groups."""
    mean_D = _write_vectors(groups)
    num_images, parts = groups[-1].rows.stop, {}
    search = ray.remote(num_cpus=1, num_gpus=int(use_gpu))(_search_pair)
    calls = (
        ((i, j), named_call(search, f"neighbors-{i}-{j}", groups[i], groups[j], mean_D, k, use_gpu))
        for i, j in itertools.product(todo, range(len(groups)))
    )
    best: dict[int, Nearest] = {}
    missing = dict.fromkeys(todo, len(groups))
    queries = sum(len(groups[number].rows) for number in todo)
    with progress("neighbor graph", queries * num_images, "comparisons") as line:
        for (query, database), found in completed(calls, default_limit()):
            best[query] = merge(best[query], found, k) if query in best else found
            missing[query] -= 1
            if not missing[query]:
                parts[query] = _write_part(folder, groups[query], best.pop(query).rows)
            line.advance(len(found.rows) * len(groups[database].rows))
    return parts


def _write_part(folder: str, group: _Group, neighbors: Ids) -> ListedFile:
    content = safetensors.numpy.save({"neighbors": np.ascontiguousarray(neighbors)})
    path = f"{group.name}.safetensors"
    part = ListedFile(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    storage.write_bytes(storage.join(folder, path), content)
    storage.write_bytes(storage.join(folder, f"{group.name}.json"), json.dumps(part.model_dump()).encode())
    return part


def _write_vectors(groups: list[_Group]) -> Floats:
    """Writes the normalized mean over views of all groups and returns their mean (D,), the same for any groups."""
    totals: dict[int, Floats] = {}
    calls = [(number, named_call(_write_unit, f"mean-views-{number}", group)) for number, group in enumerate(groups)]
    with progress("neighbor graph: mean over views", groups[-1].rows.stop, "images") as line:
        for number, total in completed(calls, default_limit()):
            totals[number] = total
            line.advance(len(groups[number].rows))
    for number, total in totals.items():
        _check_columns(groups[number].blocks[0].uris[0], len(total), groups[0].blocks[0].uris[0], len(totals[0]))
    total_D: Floats = np.sum(list(totals.values()), axis=0)
    return total_D / groups[-1].rows.stop


@ray.remote(num_cpus=1)
def _write_unit(group: _Group) -> Floats:
    vectors: list[Vectors] = []
    for block in group.blocks:
        vectors.append(_unit_mean(block))
        _check_columns(block.uris[0], vectors[-1].shape[1], group.blocks[0].uris[0], vectors[0].shape[1])
    unit_ND = np.concatenate(vectors)
    storage.write_bytes(group.vectors_uri, safetensors.numpy.save({"vectors": unit_ND}))
    total_D: Floats = unit_ND.sum(axis=0, dtype=np.float64)
    return total_D


def _unit_mean(block: FeatureBlock) -> Vectors:
    total_ND: Floats = np.zeros(())
    for uri in block.uris:
        try:
            features_ND = safetensors.numpy.load(storage.read_bytes(uri))["features"]
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{uri}: not a safetensors file with the tensor `features`: {error}") from None
        if features_ND.ndim != 2 or len(features_ND) != block.num_rows or not features_ND.size:
            raise DataError(f"{uri}: features {features_ND.shape}, expected {block.num_rows} rows")
        if not np.isfinite(features_ND).all():
            raise DataError(f"{uri}: features are not finite in row {np.argwhere(~np.isfinite(features_ND))[0][0]}")
        if total_ND.ndim:
            _check_columns(uri, features_ND.shape[1], block.uris[0], total_ND.shape[1])
        total_ND = total_ND + features_ND.astype(np.float64)
    return unit_length(total_ND / len(block.uris))


def _check_columns(uri: str, columns: int, first_uri: str, first_columns: int) -> None:
    if columns != first_columns:
        raise DataError(f"{uri}: features have {columns} columns, those of {first_uri} have {first_columns}")


def _search_pair(queries: _Group, database: _Group, mean_D: Floats, k: int, use_gpu: bool) -> Nearest:
    """The k nearest images of one group to each image of another, or of the same."""
    database_ND = _centered(database, mean_D)
    queries_QD = database_ND if queries == database else _centered(queries, mean_D)
    return nearest(queries_QD, database_ND, np.array(queries.rows), k, first_row=database.rows.start, use_gpu=use_gpu)


def _centered(group: _Group, mean_D: Floats) -> Vectors:
    return centered(safetensors.numpy.load(storage.read_bytes(group.vectors_uri))["vectors"], mean_D)
