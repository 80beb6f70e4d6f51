"""Views through the encoder, as many at a time as memory holds.

Knows nothing of shards and files.
"""

import numpy as np
import torch

from cibhash.encoder import Encoded, HashEncoder, encode
from cibhash.errors import ConfigError
from cibhash.frozen_features import Precision, feature_extractor
from cibhash.views import Pixels
from cluster.telemetry import log

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
"""What torch says when the CPU's memory, or one of its libraries', is used up."""


class Forward:
    """Encodes batches of views; passes are padded to one size, so that rows do not depend on how full theirs was."""

    def __init__(self, encoder: HashEncoder, batch_size: int, precision: Precision, *, compiled: bool) -> None:
        """Takes over the encoder.

        Args:
            encoder: On its device.
            batch_size: Views per pass to begin with; halved, for good, when memory does not suffice.
            precision: Of the backbone.
            compiled: Whether torch compiles the backbone.
        """
        self.batch_size = batch_size
        self._encoder = encoder
        self._features = feature_extractor(encoder, precision=precision, compiled=compiled)

    def __call__(self, views: Pixels) -> Encoded:
        """Codes, features and logits of views uint8 (N, 3, S, S).

        Raises:
            ConfigError: not even one view fits into memory.
        """
        while True:
            try:
                blocks = [self._pass(views[start : start + self.batch_size]) for start in self._starts(len(views))]
                return Encoded(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _is_memory(error):
                    raise
                if self.batch_size == 1:
                    what = str(error).partition("\n")[0]
                    raise ConfigError(f"the encoder does not fit into memory with one view: {what}") from None
                self.batch_size //= 2
                log("encode: out of memory, batches are halved", batch_size=self.batch_size)

    def _starts(self, count: int) -> range:
        return range(0, max(count, 1), self.batch_size)

    def _pass(self, views: Pixels) -> Encoded:
        images = np.zeros((self.batch_size, *views.shape[1:]), np.uint8)
        images[: len(views)] = views
        codes, features, logits = encode(self._encoder, torch.from_numpy(images), self._features)
        return Encoded(codes[: len(views)], features[: len(views)], logits[: len(views)])


def _is_memory(error: BaseException) -> bool:
    return any(sign in str(error).lower() for sign in _NO_MEMORY)
