"""Which rows of an index shard a version hides: a small file of ids, written and read.

Knows nothing of codes and search, and of why rows are hidden. The file's name carries the content's digest; it is
parsed once its size and SHA-256 were found to be those of the manifest.
"""

import hashlib

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cibhash.errors import DataError, ManifestMismatch
from cibhash.types import Ids
from cluster import storage
from cluster.manifests import HiddenIds, read_verified
from cluster.versions import beside

_NAMED_IDS = 5


def write_hidden(base_uri: str, number: int, ids: Ids) -> HiddenIds:
    """Writes the ids that a version hides in its index shard `number`.

    Args:
        base_uri: Directory of the index version.
        number: Of the shard; part of the file name.
        ids: int64, ascending, all of them in the shard.
    """
    content = save({"ids": np.ascontiguousarray(ids, np.int64)})
    sha256 = hashlib.sha256(content).hexdigest()
    path = f"data/hidden-{number:05d}-{sha256[:16]}.safetensors"
    storage.write_bytes(storage.join(base_uri, path), content)
    return HiddenIds(path=path, bytes=len(content), sha256=sha256, count=len(ids))


def read_hidden(base_uri: str, listed: HiddenIds, stored: Ids) -> Ids:
    """The hidden ids of a shard, ascending.

    Args:
        base_uri: Directory of the index version that hides them; those of other versions lie beside it.
        listed: What its manifest says of the file.
        stored: All ids in the shard's own files, ascending.

    Raises:
        ManifestMismatch: the file differs from its digest, its content from the manifest, or it names an id that the
            shard does not have.
        DataError: the file cannot be read although its digest is right.
    """
    folder = beside(base_uri, listed.version)
    location = storage.join(folder, listed.path)
    try:
        ids = load(read_verified(folder, listed))["ids"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{location}: not a readable file of hidden ids: {error}") from None
    if ids.dtype != np.int64 or ids.ndim != 1 or not ascending(ids):
        raise DataError(f"{location}: hidden ids {ids.dtype} {ids.shape}: not int64, ascending, unique and at least 0")
    if len(ids) != listed.count:
        raise ManifestMismatch(f"{location}: {len(ids)} hidden ids, its manifest says {listed.count}")
    foreign = np.setdiff1d(ids, stored, assume_unique=True)
    if len(foreign):
        raise ManifestMismatch(f"{location}: hides {len(foreign)} ids that its shard does not have: {some(foreign)}")
    return ids


def ascending(ids: Ids) -> bool:
    """Whether the ids ascend, none comes twice, and none is negative."""
    return bool(np.all(ids[1:] > ids[:-1])) and (not len(ids) or int(ids[0]) >= 0)


def some(ids: Ids) -> str:
    """The first ids, for an error message."""
    return ", ".join(map(str, ids[:_NAMED_IDS])) + (", ..." if len(ids) > _NAMED_IDS else "")
