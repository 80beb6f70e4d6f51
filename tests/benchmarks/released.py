"""The released code's pipeline, rebuilt from a description of it: the yardstick of the training benchmarks.

Views: PIL and torchvision one step after the other, OpenCV's 3 x 3 blur on uint8, normalization to float per sample.
Model: float32, both views one after the other. Loss: cosine by broadcasting (2N, 2N, B), the mask by Python loops, KL
with 1e-8 in every logarithm. Adam. Where the description leaves a choice, the cheaper one is taken.
"""

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import functional

from cibhash.specs import IMAGENET_MEAN, IMAGENET_STD
from cibhash.view_draws import ViewDraw

_EPSILON = 1e-8


class GaussianBlur:
    """Blurs half of the images, 3 x 3, sigma uniform in 0.1 to 2."""

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        pixels = np.array(image)
        if np.random.random_sample() < 0.5:
            sigma = 1.9 * np.random.random_sample() + 0.1
            pixels = cv2.GaussianBlur(pixels, (3, 3), sigma)  # type: ignore[assignment]
        return pixels


def augmentation(size: int) -> transforms.Compose:
    """PIL image to one random view, float32 (3, size, size), normalized."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], p=0.7),
            transforms.RandomGrayscale(p=0.2),
            GaussianBlur(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def view_of_draw(image: Image.Image, draw: ViewDraw, size: int) -> npt.NDArray[np.uint8]:
    """The view that the steps of `augmentation` give with these draws, uint8 (3, size, size)."""
    left, top, right, bottom = draw.box
    image = functional.resized_crop(image, top, left, bottom - top, right - left, [size, size])
    if draw.flip:
        image = functional.hflip(image)
    steps: dict[str, Any] = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    for name, amount in draw.color:
        image = steps[name](image, amount)
    if draw.grayscale:
        image = functional.to_grayscale(image, num_output_channels=3)
    pixels: Any = np.array(image)
    if draw.blur_sigma:
        pixels = cv2.GaussianBlur(pixels, (3, 3), draw.blur_sigma)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def opened(data: bytes) -> Image.Image:
    """A compressed image as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Two random views of every image, decoded and augmented one by one."""

    def __init__(self, images: Sequence[bytes], size: int) -> None:
        self.images, self.transform = images, augmentation(size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image = opened(self.images[number])
        return self.transform(image), self.transform(image)


class _Sign(torch.autograd.Function):
    """sign(p - 0.5), whose gradient goes to p unchanged."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return torch.sign(p - 0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def codes_of(p: Tensor) -> Tensor:
    """Codes of +1 and -1 from probabilities (N, B), with identity gradient."""
    codes: Tensor = _Sign.apply(p)
    return codes


def nt_xent(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of codes (N, B): (2N, 2N, B) values at once."""
    num_images = len(z_i)
    rows = 2 * num_images
    z = torch.cat([z_i, z_j])
    similarity = nn.functional.cosine_similarity(z.unsqueeze(1), z.unsqueeze(0), dim=2) / temperature
    positive = torch.cat([torch.diag(similarity, num_images), torch.diag(similarity, -num_images)]).reshape(rows, 1)
    negative = similarity[_negatives(num_images).to(z.device)].reshape(rows, -1)
    labels = torch.zeros(rows, dtype=torch.long, device=z.device)
    return nn.functional.cross_entropy(torch.cat([positive, negative], dim=1), labels, reduction="sum") / rows


def _negatives(num_images: int) -> Tensor:
    """Which pairs are neither of an image with itself nor of its two views, bool (2N, 2N); made anew every step."""
    rows = 2 * num_images
    mask = torch.ones((rows, rows), dtype=torch.bool)
    for i in range(rows):
        mask[i, i] = False
    for i in range(num_images):
        mask[i, num_images + i] = False
        mask[num_images + i, i] = False
    return mask


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of bits with probabilities (N, B), summed over bits, mean over images."""
    ones = p * (torch.log(p + _EPSILON) - torch.log(q + _EPSILON))
    zeros = (1 - p) * (torch.log(1 - p + _EPSILON) - torch.log(1 - q + _EPSILON))
    return torch.mean(torch.sum(ones + zeros, dim=1))


def loss(p_i: Tensor, p_j: Tensor, *, temperature: float = 0.3, beta: float = 0.001) -> Tensor:
    """The whole loss of bit probabilities (N, B) of two views."""
    contrastive = nt_xent(codes_of(p_i), codes_of(p_j), temperature)
    kl = (bernoulli_kl(p_i, p_j.detach()) + bernoulli_kl(p_j, p_i.detach())) / 2
    return contrastive + beta * kl


def step(
    backbone: nn.Module, head: nn.Module, optimizer: torch.optim.Optimizer, views: tuple[Tensor, Tensor]
) -> Tensor:
    """One training step on normalized float views (N, 3, H, W); returns the loss."""
    p_i, p_j = (torch.sigmoid(head(backbone(view))) for view in views)
    value = loss(p_i, p_j)
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.detach()
