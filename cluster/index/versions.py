"""Versions of an index: opened, published, switched.

Knows nothing of codes and search. Layout, movable as a whole since all paths in it are relative:

    INDEX/CURRENT                          one line, the name of the version that readers open
    INDEX/v000001/index.json               manifest of an immutable version, written create-only
    INDEX/v000001/data/shard-00000-<digest>.safetensors, .arrow, .faiss
    INDEX/v000002/data/hidden-00000-<digest>.safetensors

A version may list shards of earlier ones, with the ids that it hides in them. A publisher writes data first (file names
carry the content's digest, so racing publishers never overwrite each other's files), then the manifest, then moves
CURRENT (`cluster.versions`).
"""

import hashlib
from dataclasses import dataclass

from cibhash.errors import AlreadyExists, ConfigError, ManifestMismatch, NotFound
from cluster import storage
from cluster.manifests import IndexManifest, create_manifest, load_manifest
from cluster.versions import CURRENT, current_version, is_version_name, move_current, name_in, read_current


@dataclass(frozen=True)
class OpenIndex:
    """One version of an index, ready to be loaded."""

    uri: str
    """The index directory."""
    base_uri: str
    """Directory of the version; file paths in the manifest are relative to it."""
    manifest: IndexManifest

    @property
    def digest(self) -> str:
        """SHA-256 of the version's manifest: its content, encoder and name, not its location."""
        return hashlib.sha256(self.manifest.to_json()).hexdigest()


def open_index(uri: str, version: str = "") -> OpenIndex:
    """Opens a version of the index at `uri`; by default the one that CURRENT names.

    Raises:
        NotFound: there is no index, or no such version; CURRENT may name one that is gone.
        ConfigError: `version` is not a version name.
        DataError: CURRENT or the manifest is broken.
    """
    uri = storage.absolute(uri)
    if version and not is_version_name(version):
        raise ConfigError(f"{version!r} is not an index version: expected a name like v000001")
    name = version or current_version(uri)
    if not name:
        raise NotFound(f"{uri}: not a complete index: {CURRENT} is missing")
    base_uri = storage.join(uri, name)
    try:
        manifest = load_manifest(IndexManifest, base_uri)
    except NotFound:
        if version:
            raise NotFound(f"{uri}: there is no version {name} ({IndexManifest.file_name} is missing)") from None
        raise NotFound(f"{uri}: version {name} has no {IndexManifest.file_name}, but {CURRENT} names it") from None
    if manifest.version != name:
        raise ManifestMismatch(f"{base_uri}: its manifest is of version {manifest.version}, expected {name}")
    return OpenIndex(uri, base_uri, manifest)


def open_current(uri: str) -> tuple[OpenIndex, bytes | None]:
    """The current version, and the content of CURRENT, for a publisher that follows it.

    Raises:
        NotFound, DataError: as `open_index`.
    """
    pointer = read_current(uri)
    return open_index(uri, name_in(uri, pointer)), pointer


def publish(uri: str, manifest: IndexManifest, pointer: bytes | None = None) -> OpenIndex:
    """Commits the version `manifest.version`, whose data files are written, and makes it the current one.

    Args:
        uri: The index.
        manifest: Of the version.
        pointer: Content of CURRENT when the work was planned, for a version that follows from the current one: nobody
            may have moved it since. None: the version stands for itself, whatever is current now.

    Raises:
        AlreadyExists: another publisher took the version name, or moved CURRENT meanwhile. In the first case this
            publisher's version does not exist; in the second it does, and `switch` can make it current.
    """
    uri, name = storage.absolute(uri), manifest.version
    if not is_version_name(name):
        raise ValueError(f"{name!r} is not an index version: expected a name like v000001")
    base_uri, before = storage.join(uri, name), read_current(uri)
    if pointer is not None and before != pointer:
        raise AlreadyExists(
            f"{uri}: another publisher made version {name_in(uri, before)} current meanwhile: run again to follow it"
        )
    try:
        create_manifest(base_uri, manifest)
    except AlreadyExists:
        raise AlreadyExists(f"{uri}: version {name} exists: another publisher won; build again for a new one") from None
    move_current(uri, before, name)
    return OpenIndex(uri, base_uri, manifest)


def switch(uri: str, version: str) -> OpenIndex:
    """Makes an existing version the current one: a rollback, or a roll forward.

    Raises:
        NotFound: there is no such version.
        AlreadyExists: a publisher moved CURRENT at the same time.
    """
    uri = storage.absolute(uri)
    before, opened = read_current(uri), open_index(uri, version)
    if name_in(uri, before) != opened.manifest.version:
        move_current(uri, before, opened.manifest.version)
    return opened
