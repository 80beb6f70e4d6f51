"""Which tar shards a person means: a folder or prefix of them, a pattern with braces, or a list.

Knows nothing of what is in them.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cibhash.errors import ConfigError, DataError, NotFound
from cluster import storage
from cluster.listing import list_uris
from cluster.manifests import DatasetManifest

MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_OURS = (DatasetManifest.file_name, "run_report.json", "run_report_failed.json")


@dataclass(frozen=True)
class ShardListing:
    """The shards, and what lies beside them."""

    uris: tuple[str, ...]
    """Absolute, sorted."""
    ignored: dict[str, int]
    """Other files of a folder by suffix."""


def list_shards(tar_shards: str) -> ShardListing:
    """The shards that `AdoptConfig.tar_shards` names.

    Raises:
        NotFound: no such folder or list.
        ConfigError: a pattern that cannot be read.
        DataError: no shards, or one that is named twice.
    """
    ignored: Counter[str] = Counter()
    if "{" in tar_shards or tar_shards.endswith(".tar"):
        uris = [storage.absolute(uri) for uri in expand(tar_shards)]
    elif tar_shards.endswith(".txt"):
        uris = list(_read_list(storage.absolute(tar_shards)))
    else:
        folder = storage.absolute(tar_shards)
        if not storage.is_s3(folder) and not os.path.isdir(folder):
            raise NotFound(
                f"{tar_shards}: no such folder; expected one, a pattern as in {{000..099}}.tar, or a list.txt"
            )
        uris = []
        for uri in list_uris(folder):
            name = uri.rpartition("/")[2]
            if name.endswith(".tar"):
                uris.append(uri)
            elif name not in _OURS:
                ignored[os.path.splitext(name)[1]] += 1
    if not uris:
        others = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        raise DataError(f"{tar_shards}: no tar shards there{f' (other files: {others})' if others else ''}")
    uris.sort()
    for first, second in itertools.pairwise(uris):
        if first == second:
            raise DataError(f"{tar_shards}: names {first} twice")
    return ShardListing(tuple(uris), dict(sorted(ignored.items())))


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: `{000..099}` counts, `{a,b}` lists; several braces combine.

    Raises:
        ConfigError: a brace with neither, or above MAX_SHARDS names.
    """
    pieces = _BRACES.split(pattern)
    choices: list[list[str]] = []
    total = 1
    for position, piece in enumerate(pieces):
        options = _options(piece, pattern) if position % 2 else [piece]
        total *= len(options)
        if total > MAX_SHARDS:
            raise ConfigError(f"{pattern}: above {MAX_SHARDS:,} shards")
        choices.append(options)
    if any("{" in piece or "}" in piece for piece in pieces[::2]):
        raise ConfigError(f"{pattern}: a brace is not closed, or stands in another")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _options(content: str, pattern: str) -> list[str]:
    counted = _RANGE.fullmatch(content)
    if counted is None:
        if "," not in content:
            raise ConfigError(f"{pattern}: {{{content}}}, expected {{000..099}} or {{a,b}}")
        return content.split(",")
    first, last = counted.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers or len(numbers) > MAX_SHARDS:
        raise ConfigError(f"{pattern}: {{{content}}} counts {len(numbers):,}, expected 1 to {MAX_SHARDS:,}")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{number:0{width}d}" for number in numbers]


def _read_list(uri: str) -> Iterator[str]:
    folder = uri.rpartition("/")[0]
    for line in storage.read_bytes(uri).decode(errors="surrogateescape").splitlines():
        name = line.strip()
        if name and storage.is_s3(name):
            yield storage.absolute(name)
        elif name:
            yield storage.absolute(storage.join(folder, name))
