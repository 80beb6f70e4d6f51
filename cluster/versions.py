"""Immutable versions below one URI, and the pointer to the current one.

Knows nothing of what a version holds. A version `v000001` is a folder with a manifest that is written create-only;
`CURRENT` is one line with a version's name and is moved by compare-and-swap, after the manifest. Readers see the old
version or the new one. A kill between the two steps leaves a complete version that nobody reads; the next publisher
takes the next number.
"""

import re

from cibhash.errors import AlreadyExists, DataError, NotFound
from cluster import storage

CURRENT = "CURRENT"
_NAME = re.compile(r"v\d{6,}")


def is_version_name(name: str) -> bool:
    """Whether this is a name like `v000001`."""
    return _NAME.fullmatch(name) is not None


def current_version(uri: str) -> str:
    """The name in CURRENT, or "" where no version was published yet.

    Raises:
        DataError: CURRENT holds something else than a version name.
    """
    return name_in(uri, read_current(uri))


def next_version(uri: str, manifest_name: str) -> str:
    """The first name after the current version that no manifest has taken, as in `v000002`.

    Args:
        uri: What has versions.
        manifest_name: The file that makes a version complete.
    """
    number = int((current_version(uri) or "v0")[1:]) + 1
    while storage.exists(storage.join(uri, f"v{number:06d}", manifest_name)):
        number += 1
    return f"v{number:06d}"


def beside(base_uri: str, version: str) -> str:
    """The folder of another version of what has one at `base_uri`; `base_uri` itself for ""."""
    return storage.join(base_uri.rstrip("/").rpartition("/")[0], version) if version else base_uri


def read_current(uri: str) -> bytes | None:
    """The content of CURRENT, which `move_current` expects back; None where there is none."""
    try:
        return storage.read_bytes(storage.join(uri, CURRENT))
    except NotFound:
        return None


def move_current(uri: str, before: bytes | None, name: str) -> None:
    """Points CURRENT to a version, if it still is what `before` says.

    Raises:
        AlreadyExists: somebody moved it meanwhile.
    """
    try:
        storage.swap_bytes(storage.join(uri, CURRENT), before, f"{name}\n".encode())
    except AlreadyExists:
        raise AlreadyExists(
            f"{uri}: version {name} exists but is not current: {CURRENT} was moved to {current_version(uri)} meanwhile"
        ) from None


def name_in(uri: str, content: bytes | None) -> str:
    """The version's name in the content of CURRENT; "" for None.

    Raises:
        DataError: it is no version name.
    """
    if content is None:
        return ""
    name = content.decode("utf-8", "replace").removesuffix("\n")
    if not is_version_name(name):
        raise DataError(f"{storage.join(uri, CURRENT)}: {name[:40]!r} is not the name of a version like v000001")
    return name
