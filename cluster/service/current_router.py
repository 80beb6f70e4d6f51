"""The router of the version that is served now, and the switch to another once all slots have it.

Knows nothing of HTTP. A request keeps the router that it began with, so every answer comes from one version.
"""

import asyncio

from cibhash.errors import CIBHashError
from cluster.drift.left_beside import findings_of
from cluster.index.versions import open_index
from cluster.manifests import IndexManifest
from cluster.service.replica_call import Unavailable
from cluster.service.router import Router, shard_name
from cluster.telemetry import log
from cluster.versions import current_version


class CurrentRouter:
    """Follows `CURRENT` of the index, forwards and back."""

    def __init__(self, index_uri: str, router: Router, watch_s: float) -> None:
        """Begins with the version of `router`; looks at `CURRENT` every `watch_s` seconds once `follow` runs."""
        self._uri, self._watch_s = index_uri, watch_s
        self.router = router
        self.pending = ""
        """A version that `CURRENT` names but that cannot be served yet, and why; empty: there is none."""
        self.change = ""
        """What the last switch brought, if it was to another encoder; empty: it was not, or there was none."""

    async def follow(self) -> None:
        """Switches whenever another version is current and loaded; runs until it is cancelled."""
        while True:
            await asyncio.sleep(self._watch_s)
            try:
                await self.look()
            except CIBHashError as error:
                self._note(str(error))

    async def look(self) -> None:
        """Looks once, and switches if there is another version and all slots have it.

        Raises:
            CIBHashError: the index cannot be read.
        """
        before = self.router.manifest
        name = await asyncio.to_thread(current_version, self._uri)
        if name in ("", before.version):
            self.pending = ""
            return
        manifest = (await asyncio.to_thread(open_index, self._uri, name)).manifest
        router = self.router.of_version(manifest)
        missing = (await router.states()).failures
        if missing:
            slot, reason = min(missing.items())
            self._note(f"version {name} is not loaded yet by {shard_name(slot)}: {reason}")
            return
        try:
            await router.encoder_loaded()
        except Unavailable as error:
            self._note(f"version {name}: its encoder is not loaded yet: {error}")
            return
        self.change = await asyncio.to_thread(_change, self._uri, before, manifest)
        self.router, self.pending = router, ""
        log(f"serving version {name}", before=before.version, codes=manifest.count)
        if self.change:
            log(self.change)

    def _note(self, reason: str) -> None:
        if reason != self.pending:
            log(f"still serving version {self.router.manifest.version}: {reason}")
        self.pending = reason


def _change(index_uri: str, before: IndexManifest, after: IndexManifest) -> str:
    """What is known of the encoders of two versions; empty where it is one."""
    if before.encoder_digest == after.encoder_digest:
        return ""
    encoders = f"encoder {before.encoder_digest[:16]}... of {before.version} to {after.encoder_digest[:16]}..."
    try:
        findings = findings_of(index_uri, before.encoder_digest, after.encoder_digest)
    except CIBHashError as error:
        return f"From {encoders}; {error}"
    return f"From {encoders}. {findings.verdict if findings else 'Nobody has compared them (`cibhash drift`).'}"
