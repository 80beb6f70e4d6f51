"""Scatters a query over the slots of the service with a deadline, and merges what comes back by (distance, id).

Knows nothing of HTTP. A router asks about one version of the index, whatever is current by now. A slot that does not
answer in time, or answers with a failure, is missing: the answer is then refused with 503, or flagged if the caller
allowed that. Calls to a replica that died are repeated until the deadline; where there are several replicas, one that
hesitates is not waited for.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from cibhash.errors import BadImage
from cibhash.types import Codes
from cluster.index.shard_index import Row
from cluster.manifests import IndexManifest
from cluster.service import threads
from cluster.service.found import Found, merged, reranked
from cluster.service.query_encoder import EncodedImage, EncoderRef
from cluster.service.replica_call import Unavailable, call
from cluster.service.schema import MAX_JSON_NEIGHBORS, MAX_NEIGHBORS, Coverage, Item, Query, RequestRefused, Wanted
from cluster.service.shard_replica import Resolved, RowsWanted, ShardAnswer
from cluster.service.slots import Placement, deal
from cluster.telemetry import log

ENCODE_DEADLINE_S = 30.0
WITHOUT_ROWS = "this index was built without rows (--no-rows), so it has"


class Incomplete(RequestRefused):
    """503: shards are missing and the caller wants all of them."""

    def __init__(self, message: str, coverage: Coverage) -> None:
        super().__init__(503, message)
        self.coverage = coverage


@dataclass
class Scattered:
    """What came back of a call to several slots."""

    answers: dict[int, Any] = field(default_factory=dict)
    """By slot."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why the others are missing."""


def shard_name(slot: int) -> str:
    """Name of the deployment of one slot."""
    return f"Shard-{slot:03d}"


class Router:
    """Asks the slots about one version of the index."""

    def __init__(
        self,
        index_uri: str,
        manifest: IndexManifest,
        slots: Sequence[DeploymentHandle[Any]],
        encoder: DeploymentHandle[Any],
        deadline_s: float,
        hedge_s: float | None = None,
        encoder_uri: str = "",
    ) -> None:
        """Sends nothing yet.

        Args:
            index_uri: The index directory.
            manifest: Of the version.
            slots: What holds the shards, dealt as `cluster.service.slots` deals them.
            encoder: Of the queries that are images.
            deadline_s: What a slot has to answer; a request may ask for less.
            hedge_s: After so long another replica is asked too; None: there is no other.
            encoder_uri: Where the encoder lies; default: where it lay when the index was built.
        """
        self.manifest = manifest
        self._placement = Placement(index_uri, len(slots))
        self._slots, self._encoder = slots, encoder
        self._encoder_ref = EncoderRef(encoder_uri or manifest.encoder_uri, manifest.encoder_digest)
        self._deadline_s, self._hedge_s = deadline_s, hedge_s
        self._dealt = deal([shard.count for shard in manifest.shards], len(slots))
        self.counts = tuple(sum(manifest.shards[number].count for number in numbers) for numbers in self._dealt)
        """Codes per slot."""

    def of_version(self, manifest: IndexManifest) -> "Router":
        """A router that asks the same slots about another version, and the encoder that made it."""
        uri, known = self._placement.index_uri, self._encoder_ref
        encoder_uri = known.uri if manifest.encoder_digest == known.digest else manifest.encoder_uri
        return Router(uri, manifest, self._slots, self._encoder, self._deadline_s, self._hedge_s, encoder_uri)

    async def search(self, query: Query, *, with_items: bool) -> Found:
        """Neighbors of a checked query; with weights those of the candidates that are asymmetrically nearest.

        Raises:
            RequestRefused: 404 for an unknown key or id, 422 for an answer too large, 503 for missing shards.
        """
        wanted = query.wanted
        codes, lost = (query.codes, {}) if query.codes is not None else await self._resolve(query)
        limit = MAX_JSON_NEIGHBORS if with_items else MAX_NEIGHBORS
        k = wanted.k if query.weights is None else wanted.rerank
        if k is not None and len(codes) * min(k, self.manifest.count) > limit:
            raise RequestRefused(422, f"k: {k} for {len(codes)} queries, at most {limit} neighbors in one answer")
        rows: RowsWanted = "none" if not with_items else "rows"
        if query.weights is not None or (with_items and wanted.with_codes):
            rows = "with codes"
        left = [slot for slot in range(len(self._slots)) if slot not in lost]
        scattered = await self._scatter(left, "search", codes, k, wanted.radius, rows, limit)
        scattered.failures.update(lost)
        coverage = self.check_complete(scattered, wanted)
        answers: list[ShardAnswer] = list(scattered.answers.values())
        is_short = sum(answer.size for answer in answers) <= threads.SHORT_ANSWER
        neighbors = await threads.run(is_short, merged, answers, k, len(codes))
        if len(neighbors.ids) > limit:
            raise RequestRefused(422, f"radius: {len(neighbors.ids)} neighbors found, at most {limit} in one answer")
        items = {item.id: item for answer in answers for item in answer.items}
        found = Found(codes, neighbors, items, coverage)
        return found if query.weights is None else reranked(found, query.weights, wanted.k or 1)

    async def encode(self, image: bytes) -> EncodedImage:
        """The code of one compressed image.

        Raises:
            RequestRefused: 422 with the reason if it cannot be decoded, 503 if the encoder does not answer.
        """
        until = asyncio.get_running_loop().time() + ENCODE_DEADLINE_S
        try:
            encoded: EncodedImage = await call(self._encoder, until, None, "encode_image", image, self._encoder_ref)
        except BadImage as error:
            raise RequestRefused(422, f"image: {error}") from None
        except Unavailable as error:
            raise RequestRefused(503, f"encoder: {error}") from None
        return encoded

    async def encoder_loaded(self) -> None:
        """Returns once the version's encoder is loaded.

        Raises:
            Unavailable: why it is not.
        """
        until = asyncio.get_running_loop().time() + ENCODE_DEADLINE_S
        await call(self._encoder, until, None, "state", self._encoder_ref)

    async def row(self, row_id: int) -> Row:
        """The row with this id.

        Raises:
            RequestRefused: 404 if no slot has it, 503 if one that may have it does not answer.
        """
        scattered = await self._scatter(self._holders(row_id), "row", row_id)
        for row in scattered.answers.values():
            if row is not None:
                found: Row = row
                return found
        self.check_complete(scattered, Wanted())
        raise RequestRefused(404, f"id {row_id}: not in the index")

    async def sample(self, number: int, seed: int | None) -> tuple[list[Item], Coverage]:
        """Rows drawn at random without repetition, in random order."""
        generator = np.random.default_rng(seed)
        shares = generator.multivariate_hypergeometric(self.counts, min(number, self.manifest.count)).tolist()
        seeds = generator.integers(2**32, size=len(self.counts)).tolist()
        calls = {i: (share, seeds[i]) for i, share in enumerate(shares) if share}
        scattered = await self._gather("sample", calls)
        items = [item for answer in scattered.answers.values() for item in answer]
        return [items[i] for i in generator.permutation(len(items))], self.coverage(scattered)

    async def states(self) -> Scattered:
        """The `shard_replica.ShardState` of every slot that answers."""
        return await self._scatter(range(len(self._slots)), "state")

    def coverage(self, scattered: Scattered) -> Coverage:
        """Which part of the index is not missing."""
        missing, count = sorted(scattered.failures), self.manifest.count
        lost = sum(self.counts[slot] for slot in missing)
        return Coverage(
            partial=bool(missing),
            coverage=1.0 - lost / count if count else 1.0,
            shards_total=len(self._slots),
            shards_answered=len(self._slots) - len(missing),
            missing_shards=tuple(shard_name(slot) for slot in missing),
            encoder_digest=self.manifest.encoder_digest,
            index_version=self.manifest.version,
        )

    def check_complete(self, scattered: Scattered, wanted: Wanted) -> Coverage:
        """The coverage, if the caller takes it.

        Raises:
            Incomplete: shards are missing and the caller did not allow that, or none answered.
        """
        coverage = self.coverage(scattered)
        if coverage.partial:
            reasons = "; ".join(f"{shard_name(i)}: {reason}" for i, reason in sorted(scattered.failures.items()))
            log("incomplete answer", missing=",".join(coverage.missing_shards), reasons=reasons)
            if not wanted.allow_partial or not coverage.shards_answered:
                total, missing = coverage.shards_total, len(scattered.failures)
                raise Incomplete(f"{missing} of {total} shards did not answer: {reasons}", coverage)
        return coverage

    def _holders(self, row_id: int) -> list[int]:
        """Slots that may have this id."""
        shards = self.manifest.shards
        return [
            slot
            for slot, numbers in enumerate(self._dealt)
            if any(shards[n].count and shards[n].min_id <= row_id <= shards[n].max_id for n in numbers)
        ]

    async def _resolve(self, query: Query) -> tuple[Codes, dict[int, str]]:
        """Codes of the keys or ids of a query, in its order, and the slots that did not help to find them."""
        if query.keys and self.manifest.bare:
            raise RequestRefused(422, f"keys: {WITHOUT_ROWS} no keys; search by ids or codes")
        slots = range(len(self._slots)) if query.keys else sorted({n for i in query.ids for n in self._holders(i)})
        scattered = await self._scatter(slots, "resolve", query.keys, query.ids)
        answers: list[Resolved] = list(scattered.answers.values())
        by_key: dict[str, int] = {}
        for key, row_id in (pair for answer in answers for pair in answer.ids.items()):
            by_key[key] = min(row_id, by_key.get(key, row_id))  # a key of several slots: the smallest id, as of one
        by_id = {row_id: code for answer in answers for row_id, code in answer.codes.items()}
        unknown = [f"key {key!r}" for key in query.keys if key not in by_key]
        unknown += [f"id {row_id}" for row_id in query.ids if row_id not in by_id]
        if unknown or scattered.failures:
            self.check_complete(scattered, Wanted(allow_partial=query.wanted.allow_partial and not unknown))
        if unknown:
            raise RequestRefused(404, f"{unknown[0]}: not in the index")
        codes = b"".join(by_id[row_id] for row_id in [*(by_key[key] for key in query.keys), *query.ids])
        return np.frombuffer(codes, np.uint8).reshape(-1, self.manifest.bits // 8), scattered.failures

    async def _scatter(self, slots: Sequence[int], method: str, *arguments: object) -> Scattered:
        return await self._gather(method, dict.fromkeys(slots, arguments))

    async def _gather(self, method: str, calls: Mapping[int, tuple[object, ...]]) -> Scattered:
        until = asyncio.get_running_loop().time() + self._deadline_s
        asked = ("ask", self._placement, method, self.manifest.version)
        pending = [
            call(self._slots[slot], until, self._hedge_s, *asked, *arguments) for slot, arguments in calls.items()
        ]
        scattered = Scattered()
        for slot, answer in zip(calls, await asyncio.gather(*pending, return_exceptions=True), strict=True):
            if isinstance(answer, Unavailable):
                scattered.failures[slot] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                scattered.answers[slot] = answer
        return scattered
