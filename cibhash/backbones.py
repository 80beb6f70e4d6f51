"""Backbones: what turns a normalized image into a feature vector, and which part of it learns.

Knows nothing of heads and codes. A backbone is a timm model without its classifier, named as timm names it, or
`convnet-small`, a convnet of our own for small gray images that is trained from scratch.

The feature is what the classifier would have read:

- VGG: fc7 after ReLU (4,096), the paper's `classifier[:6]`. timm writes fc6 and fc7 as convolutions, `pre_logits`, with
  the paper's first dropout inside; the second one is the `head`'s. The same function as torchvision's up to 224 pixels;
  above, timm applies fc6 and fc7 at every position and averages.
- ResNet, MobileNet and other convnets: the last map averaged over positions (resnet50 2,048, mobilenetv2_100 1,280).
- ViT and DINOv2: the class token after the final norm (base 768, small 384).
- CLIP: the same token, before the projection into the space shared with text (base 768, not 512). OpenAI's weights were
  trained with QuickGELU, which timm's `vit_base_patch16_clip_quickgelu_224.openai` has and
  `vit_base_patch16_clip_224.openai` has not.
- SigLIP: the output of the attention pool over all tokens (base 768), which is the image embedding of SigLIP itself.
"""

import dataclasses
import difflib
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cibhash.errors import ConfigError
from cibhash.specs import CONVNET_SMALL, IMAGENET_MEAN, IMAGENET_STD, BackboneSpec

_DROP_RATE = 0.5
_TIMM_REFUSALS = (
    *(RuntimeError, ValueError, TypeError, OSError, ImportError, AssertionError, ArithmeticError, LookupError),
    SafetensorError,
)
"""What timm raises for names, options, sizes and weights that do not fit."""


def resolve(spec: BackboneSpec) -> BackboneSpec:
    """The spec with the mean and std that its pretrained weights expect, where it names none.

    Raises:
        ConfigError: unknown name.
    """
    if spec.mean and spec.std:
        return spec
    found = {} if spec.name == CONVNET_SMALL else _pretrained_record(spec.name)
    mean, std = spec.mean or found.get("mean", IMAGENET_MEAN), spec.std or found.get("std", IMAGENET_STD)
    return dataclasses.replace(spec, mean=tuple(mean), std=tuple(std))


def build_backbone(spec: BackboneSpec, *, weights: str) -> nn.Module:
    """A backbone that maps float (N, 3, H, W) to features (N, D).

    Args:
        spec: What to build.
        weights: `hub`, `none`, or a local safetensors file; given apart because a file may have been fetched.

    Raises:
        ConfigError: unknown name, an image size or a dropout that the model cannot have, or weights that cannot be had
            or do not fit.
    """
    if spec.name != CONVNET_SMALL:
        model = _timm_model(spec, weights)
    elif weights == "none":
        model = ConvNetSmall()
    else:
        raise ConfigError(f"{CONVNET_SMALL} has no pretrained weights: set backbone.weights to none")
    if spec.dropout and not any(module.p > 0 for module in _dropout_layers(model)):
        raise ConfigError(f"backbone {spec.name!r} has no dropout layer: set backbone.dropout to false")
    return model


def _timm_model(spec: BackboneSpec, weights: str) -> nn.Module:
    import timm  # seconds to import, and not every process builds one of its models

    is_file = weights not in ("hub", "none")
    if is_file and not weights.endswith(".safetensors"):
        raise ConfigError(f"backbone {spec.name!r} with weights {weights!r}: expected hub, none or a .safetensors file")
    arguments: dict[str, Any] = dict(spec.options)
    if _pretrained_record(spec.name).get("fixed_input_size"):
        arguments.setdefault("img_size", spec.image_size)
    if spec.dropout:
        arguments.setdefault("drop_rate", _DROP_RATE)
    if is_file:
        # A number of classes that no file has: timm then drops the file's classifier instead of refusing it.
        arguments["pretrained_cfg_overlay"] = {"file": weights, "num_classes": -1}
    try:
        model: nn.Module = timm.create_model(spec.name, pretrained=weights != "none", num_classes=0, **arguments)
        missing = _missing_weights(model, weights) if is_file else []
    except _TIMM_REFUSALS as error:
        raise ConfigError(
            f"backbone {spec.name!r} with weights {weights!r}, image_size {spec.image_size}: {_one_line(error)}"
        ) from error
    if missing:
        raise ConfigError(
            f"backbone {spec.name!r} with weights {weights!r}: {len(missing)} of its {len(model.state_dict())} tensors "
            f"are not in the file, first {missing[0]!r}"
        )
    _check_patches(model, spec)
    return model


def hub_repository(name: str) -> str:
    """The repository of Hugging Face's hub that holds the model's pretrained weights; empty where there is none.

    Raises:
        ConfigError: unknown name.
    """
    return "" if name == CONVNET_SMALL else str(_pretrained_record(name).get("hf_hub_id") or "")


def _pretrained_record(name: str) -> dict[str, Any]:
    """What timm knows of a model's pretrained weights: mean, std, whether the input size is fixed, ..."""
    from timm.models import resolve_model_input_args

    try:
        record: dict[str, Any] = resolve_model_input_args(name)["pretrained_cfg"]
    except _TIMM_REFUSALS as error:
        raise ConfigError(f"backbone {name!r}: {_one_line(error)}") from error
    return record


def _missing_weights(model: nn.Module, weights: str) -> list[str]:
    """Tensors of the model that the file lacks: timm leaves them at their random values without a word."""
    with safe_open(weights, framework="pt") as file:
        found = set(file.keys())
    return [name for name in model.state_dict() if name not in found and not name.endswith("num_batches_tracked")]


def _check_patches(model: nn.Module, spec: BackboneSpec) -> None:
    """Refuses a size with a rest that no patch covers: timm cuts it off, or pads, without a word."""
    patch_embed = getattr(model, "patch_embed", None)
    patch = getattr(patch_embed, "patch_size", 1)
    side = patch if isinstance(patch, int) else patch[0]
    if spec.image_size % side and not getattr(patch_embed, "dynamic_img_pad", False):
        raise ConfigError(f"image_size {spec.image_size}: {spec.name} needs a multiple of its patches' {side} pixels")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


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
        raise ConfigError(f"image_size {image_size}: {_one_line(error)}") from error
    backbone.train(training)
    if features.ndim != 2:
        raise ConfigError(f"the backbone gives features of shape {tuple(features.shape)}, expected (N, D)")
    return int(features.shape[1])


def mark_trained(backbone: nn.Module, train_from: str) -> None:
    """Sets which parameters require gradients.

    Args:
        backbone: As built.
        train_from: As in BackboneSpec. Parameters of the model itself or of a module around the named one, as a ViT's
            class token, come before it: they learn with `all` only.

    Raises:
        ConfigError: no such module, or nothing from there on has parameters.
    """
    trained = _trained_modules(backbone, train_from)
    backbone.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_()


def set_mode(backbone: nn.Module, spec: BackboneSpec, *, training: bool) -> None:
    """Puts what learns into training mode, or all into evaluation mode; what is frozen always evaluates.

    With `dropout` the frozen dropout layers train as well, and only they: batch statistics and stochastic depth of
    frozen modules stay off.
    """
    backbone.eval()
    if training:
        for module in (
            *_trained_modules(backbone, spec.train_from),
            *(_dropout_layers(backbone) if spec.dropout else ()),
        ):
            module.train()


def _trained_modules(backbone: nn.Module, train_from: str) -> list[nn.Module]:
    """The named module and all that are registered after it."""
    modules = dict(backbone.named_modules())
    if train_from in ("", "all"):
        return list(modules.values()) if train_from else []
    names = list(modules)
    if train_from not in modules:
        close = difflib.get_close_matches(train_from, names, n=5)
        children = ", ".join(name for name, child in backbone.named_children() if any(True for _ in child.parameters()))
        raise ConfigError(
            f"train_from {train_from!r}: no module of the backbone, which has {children}"
            + (f"; close: {', '.join(close)}" if close else "")
        )
    trained = [modules[name] for name in names[names.index(train_from) :]]
    if not any(True for module in trained for _ in module.parameters(recurse=False)):
        raise ConfigError(f"train_from {train_from!r}: nothing from there on has parameters, so nothing would learn")
    return trained


def _dropout_layers(backbone: nn.Module) -> list[nn.Dropout]:
    return [module for module in backbone.modules() if isinstance(module, nn.Dropout)]


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
