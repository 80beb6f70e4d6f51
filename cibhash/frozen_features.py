"""Features of a frozen backbone, as fast as the machine gives them: half precision and a compiled graph on request.

Knows nothing of heads and of where images come from.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cibhash.encoder import HashEncoder

Precision = Literal["float32", "bfloat16"]
FeatureExtractor = Callable[[Tensor], Tensor]
"""uint8 (N, 3, H, W) on the encoder's device to float32 (N, D), without gradient."""


def feature_extractor(
    encoder: HashEncoder, *, precision: Precision = "float32", compiled: bool = False
) -> FeatureExtractor:
    """The backbone as a function of images.

    Args:
        encoder: Its backbone must not learn while the function is in use.
        precision: `bfloat16` runs matrix products and convolutions in half precision.
        compiled: Whether torch compiles the graph for one batch size: seconds to minutes at the first batch (on a
            CPU it needs a C++ compiler), then several times as fast. Smaller batches are padded to the first one's
            size. Weights are folded into the graph.
    """

    def eager(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return encoder.features(images).float()

    if not compiled:
        return torch.no_grad()(eager)
    graph = torch.compile(eager, dynamic=False, options={"freezing": True})
    batch_size = 0

    def padded(images: Tensor) -> Tensor:
        nonlocal batch_size
        count = len(images)
        batch_size = max(batch_size, count)
        if count < batch_size:
            images = torch.cat([images, images.new_zeros(batch_size - count, *images.shape[1:])])
        with torch.no_grad():
            features: Tensor = graph(images.contiguous(memory_format=torch.channels_last))
        return features[:count]

    return padded
