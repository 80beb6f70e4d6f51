"""The encoder: backbone, head and binary layer; how it is saved, and the digest that names it.

Knows nothing of training. An encoder is a directory: `encoder.json`, `backbone.safetensors`, `head.safetensors`. It
takes uint8 images and normalizes them itself, so whoever feeds it cannot do that wrong.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cibhash.backbones import build_backbone, feature_dim, mark_trained, resolve, set_mode
from cibhash.binary import pack_bits
from cibhash.errors import DataError, ManifestMismatch, NotFound
from cibhash.rotation import FixedRotation
from cibhash.specs import BackboneSpec
from cibhash.types import Codes

ENCODER_FILE = "encoder.json"
WEIGHT_FILES = ("backbone.safetensors", "head.safetensors")
_LEARNED_LAYERS = 3
FORMAT = "cibhash-encoder-2"
CODE_LAYOUT = {"bit_order": "little", "threshold": 0.5, "resize": "bilinear-antialias-square"}


@dataclass(frozen=True)
class EncoderSpec:
    """What rebuilds an encoder, weights aside."""

    backbone: BackboneSpec
    prefixes: tuple[int, ...]
    """Code lengths that were trained, ascending; the last is the full code."""
    hidden: int = 1024
    """Width of the head's hidden layer."""
    rotation: int = 0
    """Principal components of the training features that the head is given; 0: the features as they are."""
    objective: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained; a record, not part of the digest."""
    training_data: str = ""
    """Digest of the training dataset; a record, not part of the digest."""

    def __post_init__(self) -> None:
        """Checks the code lengths."""
        if (
            not self.prefixes
            or sorted(set(self.prefixes)) != list(self.prefixes)
            or any(k % 8 or k <= 0 for k in self.prefixes)
        ):
            raise ValueError(f"prefixes {self.prefixes}: expected ascending multiples of 8")

    @property
    def bits(self) -> int:
        """Length of the full code."""
        return self.prefixes[-1]

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.backbone.image_size


class Encoded(NamedTuple):
    """Codes of a batch, and the features and logits they were made from."""

    codes: Codes
    """uint8 (N, B/8)."""
    features: npt.NDArray[np.float32]
    """float32 (N, D)."""
    logits: npt.NDArray[np.float32]
    """float32 (N, B); bit j of a code is 1 where sigmoid(logit j) > 0.5."""


class HashEncoder(nn.Module):
    """Images uint8 (N, 3, H, W) to logits (N, B); bit j is 1 where sigmoid(logit j) > 0.5.

    Source of the head: released code, Linear(D, hidden) - ReLU - Linear(hidden, B); the rotation before it is ours.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, backbone: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.digest = ""
        self.backbone = backbone
        self.num_features = feature_dim(backbone, spec.image_size)
        rotation = [FixedRotation(self.num_features, spec.rotation)] if spec.rotation else []
        width = spec.rotation or self.num_features
        self.head = nn.Sequential(
            *rotation, nn.Linear(width, spec.hidden), nn.ReLU(), nn.Linear(spec.hidden, spec.bits)
        )
        self.register_buffer("mean", 255 * torch.tensor(spec.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.backbone.std).view(1, 3, 1, 1), persistent=False)
        mark_trained(backbone, spec.backbone.train_from)
        self.train()

    def train(self, mode: bool = True) -> "HashEncoder":
        """Training mode, in which what is frozen of the backbone stays in evaluation mode, dropout aside if asked."""
        super().train(mode)
        set_mode(self.backbone, self.spec.backbone, training=mode)
        return self

    @property
    def fixed_head(self) -> nn.Sequential:
        """The part of the head that does not learn: the rotation, or nothing."""
        return self.head[:-_LEARNED_LAYERS]

    @property
    def learned_head(self) -> nn.Sequential:
        """The part of the head that learns; it shares its parameters with `head`."""
        return self.head[-_LEARNED_LAYERS:]

    def features(self, images: Tensor) -> Tensor:
        """Features float (N, D) of uint8 images (N, 3, H, W)."""
        normalized = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone(normalized)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, B) of uint8 images (N, 3, H, W)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def new_encoder(spec: EncoderSpec, *, seed: int, weights: str | None = None) -> HashEncoder:
    """An encoder with a fresh head, and the backbone's initial weights.

    Args:
        spec: What to build.
        seed: Of the random initial weights.
        weights: As in `build_backbone`; default: what the spec says.
    """
    spec = replace(spec, backbone=resolve(spec.backbone))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = build_backbone(spec.backbone, weights=spec.backbone.weights if weights is None else weights)
        return HashEncoder(spec, backbone.to(memory_format=torch.channels_last))


def encode(encoder: HashEncoder, images: Tensor, extract: Callable[[Tensor], Tensor] | None = None) -> Encoded:
    """Codes, features and logits of images, on the encoder's device.

    Args:
        encoder: The model.
        images: uint8 (N, 3, H, W).
        extract: Its features by another way, as `cibhash.frozen_features` makes them.
    """
    encoder.eval()
    with torch.inference_mode():
        features = (extract or encoder.features)(images.to(encoder.mean.device))
        logits = encoder.head(features).float()
        bits = torch.sigmoid(logits) > 0.5
    return Encoded(pack_bits(bits.cpu().numpy()), features.float().cpu().numpy(), logits.cpu().numpy())


def encoder_digest(encoder: HashEncoder) -> str:
    """SHA-256 over weights, input transform and code layout: all that decides the codes."""
    digest = hashlib.sha256()
    backbone = asdict(encoder.spec.backbone)
    for name in ("weights", "train_from", "dropout"):
        del backbone[name]
    head = {"hidden": encoder.spec.hidden, "rotation": encoder.spec.rotation, "bits": encoder.spec.bits}
    layout = {"backbone": backbone, **head, **CODE_LAYOUT}
    digest.update(json.dumps(layout, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_encoder(encoder: HashEncoder, folder: Path) -> str:
    """Writes the encoder directory, `encoder.json` last; returns and sets the digest."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.digest = encoder_digest(encoder)
    for name, part in zip(WEIGHT_FILES, (encoder.backbone, encoder.head), strict=True):
        save_file({key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}, folder / name)
    (folder / ENCODER_FILE).write_text(json.dumps(encoder_record(encoder), indent=1) + "\n")
    return encoder.digest


def encoder_record(encoder: HashEncoder) -> dict[str, Any]:
    """The content of `encoder.json`."""
    spec = asdict(encoder.spec)
    return {"format": FORMAT, "digest": encoder.digest, "bits": encoder.spec.bits, **spec, **CODE_LAYOUT}


def parse_record(content: str | bytes, where: str) -> tuple[EncoderSpec, str]:
    """Spec and digest from the content of `encoder.json`.

    Raises:
        DataError: not the layout that this version writes.
    """
    try:
        record = json.loads(content)
        if record.pop("format") != FORMAT or any(record.pop(name) != value for name, value in CODE_LAYOUT.items()):
            raise DataError(f"{where}: written by another version of cibhash")
        digest, bits = record.pop("digest"), record.pop("bits")
        backbone = record.pop("backbone")
        spec = BackboneSpec(**{**backbone, "mean": tuple(backbone["mean"]), "std": tuple(backbone["std"])})
        encoder = EncoderSpec(**{**record, "backbone": spec, "prefixes": tuple(record["prefixes"])})
        if encoder.bits != bits:
            raise DataError(f"{where}: bits {bits}, but the longest of its prefixes is {encoder.bits}")
        return encoder, digest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: broken encoder record: {type(error).__name__} {error}") from None


def load_encoder(folder: Path) -> HashEncoder:
    """Reads an encoder directory, in evaluation mode.

    Raises:
        NotFound: `encoder.json` is missing: not an encoder, or not finished.
        ManifestMismatch: the weights are not the ones the digest was taken of.
    """
    path = folder / ENCODER_FILE
    if not path.is_file():
        raise NotFound(f"{folder}: not a complete encoder: {ENCODER_FILE} is missing")
    spec, digest = parse_record(path.read_bytes(), str(path))
    encoder = new_encoder(spec, seed=0, weights="none")
    for name, part in zip(WEIGHT_FILES, (encoder.backbone, encoder.head), strict=True):
        try:
            part.load_state_dict(load_file(folder / name))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ManifestMismatch(f"{folder / name}: {' '.join(str(error).split())[:200]}") from None
    encoder.digest = encoder_digest(encoder)
    if encoder.digest != digest:
        raise ManifestMismatch(
            f"{folder}: weights of encoder {encoder.digest[:16]}..., {ENCODER_FILE} says {digest[:16]}..."
        )
    return encoder.eval()
