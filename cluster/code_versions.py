"""Versions of a code table: opened and published.

Knows nothing of what parts hold. Layout, movable as a whole since all paths in it are relative to the table:

    CODES/CURRENT                 one line, the name of the version that readers open
    CODES/v000001/codes.json      manifest of an immutable version, written create-only
    CODES/codes.json              a copy of the current version's manifest, for readers that know of no versions
    CODES/parts/, quarantine/     files of all versions; their names carry what they were made from

A version lists unchanged parts of the one before. Files are written first, then the version's manifest, then CURRENT
is moved (`cluster.versions`), then the copy replaced.
"""

import contextlib

from cibhash.errors import AlreadyExists, ConfigError, ManifestMismatch, NotFound
from cluster import storage
from cluster.manifests import CodeManifest, create_manifest, load_manifest
from cluster.versions import CURRENT, current_version, is_version_name, move_current, name_in


def open_codes(uri: str, version: str = "") -> CodeManifest:
    """The manifest of a version of the code table at `uri`; by default the current one.

    Raises:
        NotFound: not a code table, one that is not finished, or no such version.
        ConfigError: `version` is not a version name.
        DataError: CURRENT or the manifest is broken.
    """
    if version and not is_version_name(version):
        raise ConfigError(f"{version!r} is not the version of a code table: expected a name like v000001")
    name = version or current_version(uri)
    if not name:
        return load_manifest(CodeManifest, uri)
    try:
        manifest = load_manifest(CodeManifest, storage.join(uri, name))
    except NotFound:
        if version:
            raise NotFound(f"{uri}: there is no version {name} ({CodeManifest.file_name} is missing)") from None
        raise NotFound(f"{uri}: version {name} has no {CodeManifest.file_name}, but {CURRENT} names it") from None
    if manifest.version != name:
        raise ManifestMismatch(f"{uri}: the manifest in {name} is of version {manifest.version}")
    return manifest


def find_codes(uri: str, digest: str, version: str = "") -> CodeManifest:
    """The version of the code table at `uri` with this digest: the one of that name, else the oldest.

    Versions may share a digest: they differ in where their dataset lies.

    Raises:
        NotFound: no version has it, up to the current one.
        DataError: a manifest is broken.
    """
    last = int((current_version(uri) or "v0")[1:])
    numbered = [f"v{number:06d}" for number in range(1, last + 1)]
    for name in [version, *numbered] if version else numbered or [""]:
        with contextlib.suppress(NotFound):
            found = open_codes(uri, name)
            if found.digest == digest:
                return found
    raise NotFound(f"{uri}: no version of this code table has digest {digest[:16]}...")


def publish_codes(uri: str, manifest: CodeManifest, before: bytes | None) -> CodeManifest:
    """Commits a version, whose files are written, and makes it the current one.

    Args:
        uri: The code table.
        manifest: Of the version; its name is set here.
        before: Content of CURRENT when the work was planned: nobody may have moved it since.

    Returns:
        What is current now: the version made, or an equal one that an interrupted or faster run has written.

    Raises:
        AlreadyExists: another run made another table current meanwhile.
    """
    number = int((name_in(uri, before) or "v0")[1:]) + 1
    while True:
        version = manifest.model_copy(update={"version": f"v{number:06d}"})
        try:
            create_manifest(storage.join(uri, version.version), version)
            break
        except AlreadyExists:
            if open_codes(uri, version.version).digest == manifest.digest:
                break
            number += 1
    try:
        move_current(uri, before, version.version)
    except AlreadyExists:
        version = open_codes(uri)
        if version.digest != manifest.digest:
            raise AlreadyExists(
                f"{uri}: another run made version {version.version} current meanwhile, with digest "
                f"{version.digest[:16]}..., this one has {manifest.digest[:16]}...: run again to continue from there"
            ) from None
    copy_current(uri)
    return version


def copy_current(uri: str) -> None:
    """Makes `codes.json` beside the versions equal to the current one's, as a killed run may have left it undone."""
    location, name = storage.join(uri, CodeManifest.file_name), ""
    while name != (name := current_version(uri)):
        content = open_codes(uri, name).to_json()
        if not storage.exists(location) or storage.read_bytes(location) != content:
            storage.write_bytes(location, content)
