"""Backbones: what turns a normalized image into a feature vector.

Knows nothing of heads and codes. A backbone is a timm model without its classifier, named as timm names it, or
`convnet-small`, a convnet of our own for small gray images that is trained from scratch.
"""

from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cibhash.errors import ConfigError
from cibhash.specs import CONVNET_SMALL, BackboneSpec


def build_backbone(spec: BackboneSpec, *, weights: str) -> nn.Module:
    """A backbone that maps float (N, 3, H, W) to features (N, D).

    Args:
        spec: What to build.
        weights: `hub`, `none`, or a local safetensors file; given apart because a file may have been fetched.

    Raises:
        ConfigError: unknown name, or weights that cannot be had or do not fit.
    """
    if spec.name == CONVNET_SMALL:
        if weights != "none":
            raise ConfigError(f"{CONVNET_SMALL} has no pretrained weights: set backbone.weights to none")
        return ConvNetSmall()
    import timm  # seconds to import, and not every process builds one of its models

    arguments: dict[str, Any] = dict(spec.options)
    if weights not in ("hub", "none"):
        arguments["pretrained_cfg_overlay"] = {"file": weights}
    try:
        model: nn.Module = timm.create_model(spec.name, pretrained=weights != "none", num_classes=0, **arguments)
        missing = [] if weights in ("hub", "none") else _missing_weights(model, weights)
    except (RuntimeError, ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"backbone {spec.name!r} with weights {weights!r}: {reason}") from error
    if missing:
        raise ConfigError(
            f"backbone {spec.name!r} with weights {weights!r}: {len(missing)} of its {len(model.state_dict())} tensors "
            f"are not in the file, first {missing[0]!r}"
        )
    return model


def _missing_weights(model: nn.Module, weights: str) -> list[str]:
    """Tensors of the model that the file lacks: timm leaves them at their random values without a word."""
    if not weights.endswith(".safetensors"):
        raise ValueError("expected a .safetensors file")
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    return [name for name in model.state_dict() if name not in found and not name.endswith("num_batches_tracked")]


def feature_dim(backbone: nn.Module, image_size: int) -> int:
    """Number of features, by one forward pass of a blank image.

    Raises:
        ConfigError: the backbone does not give one vector per image at this size.
    """
    training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            features: Tensor = backbone(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"image_size {image_size}: {' '.join(str(error).split())[:200]}") from error
    backbone.train(training)
    if features.ndim != 2:
        raise ConfigError(f"the backbone gives features of shape {tuple(features.shape)}, expected (N, D)")
    return int(features.shape[1])


class ConvNetSmall(nn.Module):
    """Three strided convolutions for 32 x 32 images of simple shapes: a 4 x 4 map of 64 channels, 1024 features."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.ReLU(inplace=True))

        self.layers = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), nn.AdaptiveAvgPool2d(4), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, 1024)."""
        features: Tensor = self.layers(images)
        return features
