"""The versions of an index that one slot of the service has in memory, and how it follows the current one.

Knows nothing of requests. A version is loaded when `CURRENT` names it, before anybody asks, or when somebody asks for
it; what fails to load is told to whoever asks, and tried again after a pause. Versions share the shards that they have
in common. The last two stay, and any that was asked for lately: a request is answered from the version it began with.
"""

import asyncio
import threading
import time

from cibhash.errors import CIBHashError
from cluster.index.kinds import IndexKind
from cluster.index.shard_index import ShardIndex
from cluster.index.versions import open_index
from cluster.manifests import IndexShardEntry
from cluster.service.shard_group import ShardGroup
from cluster.service.slots import deal
from cluster.telemetry import log
from cluster.versions import current_version

RELOAD_PAUSE_S = 5.0
KEEP_S = 60.0
"""A version that nobody has asked for in so long is given up, beyond the last two."""
_KEPT = 2


class LoadedVersions:
    """Safe to use from several threads; loads one version at a time."""

    def __init__(
        self, index_uri: str, slot: int, num_slots: int, version: str, watch_s: float, device: str = ""
    ) -> None:
        """Loads the first version; if that fails, whoever asks is told.

        Args:
            index_uri: The index directory.
            slot: Which of the slots this is.
            num_slots: How many there are.
            version: To begin with.
            watch_s: Seconds between two looks at `CURRENT`.
            device: Where shards are searched, as torch names it; empty: on CPUs.
        """
        self._device = device
        self._uri, self._slot, self._num_slots, self._watch_s = index_uri, slot, num_slots, watch_s
        self._loading = threading.Lock()
        self._held: dict[str, ShardGroup] = {}
        self._used: dict[str, float] = {}
        self._failed: dict[str, tuple[float, CIBHashError]] = {}
        self._preload(version)
        threading.Thread(target=self._follow, daemon=True, name="follow CURRENT").start()

    async def get(self, version: str) -> ShardGroup:
        """The slot's shards of a version, loaded first where they are not.

        Raises:
            CIBHashError: why they cannot be.
        """
        self._used[version] = time.monotonic()
        held = self._held.get(version)
        return held if held is not None else await asyncio.to_thread(self._load, version)

    def _load(self, version: str) -> ShardGroup:
        with self._loading:
            if (held := self._held.get(version)) is not None:
                return held
            tried_s, failure = self._failed.get(version, (0.0, None))
            if failure is not None and time.monotonic() - tried_s < RELOAD_PAUSE_S:
                raise failure
            try:
                group = self._open(version)
            except CIBHashError as error:
                self._failed[version] = (time.monotonic(), error)
                raise
            self._failed.pop(version, None)
            self._used[version] = time.monotonic()
            self._held = {**self._without_unused(), version: group}
            return group

    def _open(self, version: str) -> ShardGroup:
        opened = open_index(self._uri, version)
        manifest = opened.manifest
        known = {
            _content(entry, shard.kind): shard
            for group in self._held.values()
            for shard, entry in zip(group.shards, group.entries, strict=True)
        }
        numbers = deal([entry.count for entry in manifest.shards], self._num_slots)[self._slot]
        entries = [manifest.shards[number] for number in numbers]
        shards = [
            known.get(_content(entry, manifest.kind))
            or ShardIndex.load(opened.base_uri, entry, manifest.bits, kind=manifest.kind, device=self._device)
            for entry in entries
        ]
        return ShardGroup(shards, entries)

    def _without_unused(self) -> dict[str, ShardGroup]:
        latest = sorted(self._held, key=lambda version: self._used.get(version, 0.0), reverse=True)
        since = time.monotonic() - KEEP_S
        kept = [name for place, name in enumerate(latest) if place < _KEPT - 1 or self._used.get(name, 0.0) > since]
        return {name: self._held[name] for name in kept}

    def _follow(self) -> None:
        while True:
            time.sleep(self._watch_s)
            try:
                name = current_version(self._uri)
            except CIBHashError as error:
                log(f"cannot look for a new version: {error}")
                continue
            if name and name not in self._held and name not in self._failed:
                self._preload(name)

    def _preload(self, version: str) -> None:
        try:
            self._load(version)
        except CIBHashError as error:
            log(f"cannot load version {version}: {error}", slot=self._slot)


def _content(entry: IndexShardEntry, kind: IndexKind) -> tuple[str, ...]:
    """What two entries have in common that stand for the same codes, ids and rows, searched in the same way."""
    files = (entry.codes, entry.rows, entry.hidden, entry.structure)
    return (kind, *(file.sha256 if file is not None else "" for file in files))
