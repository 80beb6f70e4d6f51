"""The deployment that turns uploaded images into codes, in dynamic batches.

Knows nothing of the index but the encoder digest that it must have. A replica starts even when the encoder cannot be
loaded (see `reloading`).
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
from cluster.service.slots import Misplaced

MAX_BATCH = 16
BATCH_WAIT_S = 0.005


class EncodedImage(NamedTuple):
    """What the encoder says of one image."""

    code: Codes
    """uint8 (1, B/8)."""
    logits: npt.NDArray[np.float32]
    """(1, B)."""


class QueryEncoder:
    """Holds one encoder; decodes in threads, encodes waiting images together."""

    def __init__(self, encoder_uri: str, encoder_digest: str, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._digest = encoder_digest
        self._encoder = Reloading(lambda: _open(encoder_uri, encoder_digest))

    async def state(self) -> int:
        """The replica's process, once its encoder is loaded.

        Raises:
            CIBHashError: why it is not.
        """
        await self._encoder.get()
        return os.getpid()

    async def encode_image(self, data: bytes, digest: str) -> EncodedImage:
        """The code of one compressed image, by the encoder with this digest.

        Raises:
            BadImage: the bytes cannot or may not be decoded.
            Misplaced: this is another encoder.
        """
        if digest != self._digest:
            raise Misplaced(f"holds encoder {self._digest[:16]}..., asked for {digest[:16]}...")
        image_size = (await self._encoder.get()).spec.image_size
        view = await asyncio.to_thread(lambda: eval_view(decode_image(data), image_size))
        encoded: EncodedImage = await self._encode_views(view)
        return encoded

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _encode_views(self, views: Sequence[npt.NDArray[np.uint8]]) -> list[EncodedImage]:
        encoder = await self._encoder.get()
        encoded = await asyncio.to_thread(encode, encoder, torch.from_numpy(np.stack(views)))
        return [EncodedImage(encoded.codes[i : i + 1], encoded.logits[i : i + 1]) for i in range(len(views))]


def _open(uri: str, digest: str) -> HashEncoder:
    encoder = open_encoder(uri)
    same_encoder((uri, encoder.digest), ("the index", digest))
    return encoder
