"""The deployment that turns uploaded images into codes, in dynamic batches, by the encoder of the served version.

Knows nothing of the index but which encoder made it. A replica starts even when an encoder cannot be loaded (see
`reloading`).
"""

import asyncio
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ray import serve

from cibhash.encoder import HashEncoder, encode
from cibhash.images import decode_image
from cibhash.types import Codes
from cibhash.views import eval_view
from cluster.encoders import open_encoder
from cluster.manifests import same_encoder
from cluster.service.reloading import Reloading

MAX_BATCH = 16
BATCH_WAIT_S = 0.005
_KEPT = 2
"""Encoders: of the version that is served, and of the one before or after it."""


class EncoderRef(NamedTuple):
    """Which encoder, and where it lies."""

    uri: str
    digest: str


class EncodedImage(NamedTuple):
    """What the encoder says of one image."""

    code: Codes
    """uint8 (1, B/8)."""
    logits: npt.NDArray[np.float32]
    """(1, B)."""


class QueryEncoder:
    """Holds the encoders asked for last; decodes in threads, encodes waiting images together."""

    def __init__(self, first: EncoderRef, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._encoders: dict[EncoderRef, Reloading[HashEncoder]] = {}
        self._reloading(first)

    async def state(self, wanted: EncoderRef) -> int:
        """The replica's process, once this encoder is loaded.

        Raises:
            CIBHashError: why it is not.
        """
        await self._encoder(wanted)
        return os.getpid()

    async def encode_image(self, data: bytes, wanted: EncoderRef) -> EncodedImage:
        """The code of one compressed image, by this encoder.

        Raises:
            BadImage: the bytes cannot or may not be decoded.
            CIBHashError: the encoder cannot be loaded.
        """
        encoder = await self._encoder(wanted)
        view = await asyncio.to_thread(lambda: eval_view(decode_image(data), encoder.spec.image_size))
        encoded: EncodedImage = await self._encode_views((encoder, view))
        return encoded

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _encode_views(self, asked: Sequence[tuple[HashEncoder, npt.NDArray[np.uint8]]]) -> list[EncodedImage]:
        found: dict[int, EncodedImage] = {}
        for encoder in {id(encoder): encoder for encoder, _ in asked}.values():
            places = [place for place, (other, _) in enumerate(asked) if other is encoder]
            views = torch.from_numpy(np.stack([asked[place][1] for place in places]))
            encoded = await asyncio.to_thread(encode, encoder, views)
            parts = (EncodedImage(encoded.codes[i : i + 1], encoded.logits[i : i + 1]) for i in range(len(places)))
            found.update(zip(places, parts, strict=True))
        return [found[place] for place in range(len(asked))]

    async def _encoder(self, wanted: EncoderRef) -> HashEncoder:
        held = self._encoders.get(wanted)
        if held is None:
            held = await asyncio.to_thread(self._reloading, wanted)
        return await held.get()

    def _reloading(self, wanted: EncoderRef) -> Reloading[HashEncoder]:
        """What loads the encoder, and forgets all but those asked for last."""
        made = self._encoders.pop(wanted, None) or Reloading(lambda: _open(wanted))
        kept = list(self._encoders.items())[-(_KEPT - 1) :]
        self._encoders = {**dict(kept), wanted: made}
        return made


def _open(wanted: EncoderRef) -> HashEncoder:
    encoder = open_encoder(wanted.uri)
    same_encoder((wanted.uri, encoder.digest), ("the index", wanted.digest))
    return encoder
