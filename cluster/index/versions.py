"""Versions of an index and the pointer to the current one.

Knows nothing of codes and search. Layout, movable as a whole since all paths in it are relative:

    INDEX/CURRENT                          one line, the name of the version that readers open
    INDEX/v000001/index.json               manifest of an immutable version, written create-only
    INDEX/v000001/data/shard-00000-<digest>.safetensors, .arrow

A publisher writes data first (file names carry the content's digest, so racing publishers never overwrite each other's
files), then the manifest, then moves CURRENT by compare-and-swap. Readers see the old version or the new one. A kill
between the last two steps leaves a complete version that nobody reads; the next publisher takes the next number.
"""

import hashlib
import re
from dataclasses import dataclass

from cibhash.errors import AlreadyExists, ConfigError, DataError, ManifestMismatch, NotFound
from cluster import storage
from cluster.manifests import IndexManifest, create_manifest, load_manifest

CURRENT = "CURRENT"
_NAME = re.compile(r"v\d{6,}")


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
    if version and not _NAME.fullmatch(version):
        raise ConfigError(f"{version!r} is not an index version: expected a name like v000001")
    name = version or current_version(uri)
    if not name:
        raise NotFound(f"{uri}: not a complete index: {CURRENT} is missing")
    base_uri = storage.join(uri, name)
    try:
        manifest = load_manifest(IndexManifest, base_uri)
    except NotFound:
        cause = "there is no such version" if version else f"{CURRENT} names it"
        raise NotFound(f"{uri}: version {name} has no {IndexManifest.file_name}, but {cause}") from None
    if manifest.version != name:
        raise ManifestMismatch(f"{base_uri}: its manifest is of version {manifest.version}, expected {name}")
    return OpenIndex(uri, base_uri, manifest)


def current_version(uri: str) -> str:
    """The name in CURRENT, or "" where no version was published yet.

    Raises:
        DataError: CURRENT holds something else than a version name.
    """
    return _name_in(uri, _read_current(uri))


def next_version(uri: str) -> str:
    """The first name after the current version that no manifest has taken, as in `v000002`."""
    number = int((current_version(uri) or "v0")[1:]) + 1
    while storage.exists(storage.join(uri, f"v{number:06d}", IndexManifest.file_name)):
        number += 1
    return f"v{number:06d}"


def publish(uri: str, manifest: IndexManifest) -> OpenIndex:
    """Commits the version `manifest.version`, whose data files are written, and makes it the current one.

    Raises:
        AlreadyExists: another publisher took the version name, or moved CURRENT meanwhile. In the first case this
            publisher's version does not exist; in the second it does, and `switch` can make it current.
    """
    uri, name = storage.absolute(uri), manifest.version
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not an index version: expected a name like v000001")
    base_uri, before = storage.join(uri, name), _read_current(uri)
    try:
        create_manifest(base_uri, manifest)
    except AlreadyExists:
        raise AlreadyExists(f"{uri}: version {name} exists: another publisher won; build again for a new one") from None
    _move_current(uri, before, name)
    return OpenIndex(uri, base_uri, manifest)


def switch(uri: str, version: str) -> OpenIndex:
    """Makes an existing version the current one: a rollback, or a roll forward.

    Raises:
        NotFound: there is no such version.
        AlreadyExists: a publisher moved CURRENT at the same time.
    """
    uri = storage.absolute(uri)
    before, opened = _read_current(uri), open_index(uri, version)
    if _name_in(uri, before) != opened.manifest.version:
        _move_current(uri, before, opened.manifest.version)
    return opened


def _move_current(uri: str, before: bytes | None, name: str) -> None:
    try:
        storage.swap_bytes(storage.join(uri, CURRENT), before, f"{name}\n".encode())
    except AlreadyExists:
        raise AlreadyExists(
            f"{uri}: version {name} exists but is not current: {CURRENT} was moved to {current_version(uri)} meanwhile"
        ) from None


def _read_current(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(storage.join(uri, CURRENT))
    except NotFound:
        return None


def _name_in(uri: str, content: bytes | None) -> str:
    if content is None:
        return ""
    name = content.decode("utf-8", "replace").removesuffix("\n")
    if not _NAME.fullmatch(name):
        raise DataError(f"{storage.join(uri, CURRENT)}: {name[:40]!r} is not an index version like v000001")
    return name
