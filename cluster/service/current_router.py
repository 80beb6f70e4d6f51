"""The router of the version that is served now, and the switch to another once all slots have it.

Knows nothing of HTTP. A request keeps the router that it began with, so every answer comes from one version.
"""

import asyncio

from cibhash.errors import CIBHashError, ManifestMismatch
from cluster.index.versions import open_index
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
            CIBHashError: the index cannot be read, or its new version is of another encoder.
        """
        before = self.router.manifest
        name = await asyncio.to_thread(current_version, self._uri)
        if name in ("", before.version):
            self.pending = ""
            return
        manifest = (await asyncio.to_thread(open_index, self._uri, name)).manifest
        if (manifest.encoder_digest, manifest.bits) != (before.encoder_digest, before.bits):
            raise ManifestMismatch(
                f"version {name} has {manifest.bits} bits of encoder {manifest.encoder_digest[:16]}..., this service "
                f"{before.bits} of {before.encoder_digest[:16]}...: start a service for it"
            )
        router = self.router.of_version(manifest)
        missing = (await router.states()).failures
        if missing:
            slot, reason = min(missing.items())
            self._note(f"version {name} is not loaded yet by {shard_name(slot)}: {reason}")
            return
        self.router, self.pending = router, ""
        log(f"serving version {name}", before=before.version, codes=manifest.count)

    def _note(self, reason: str) -> None:
        if reason != self.pending:
            log(f"still serving version {self.router.manifest.version}: {reason}")
        self.pending = reason
