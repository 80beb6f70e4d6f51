"""Features of a frozen backbone: the encoder's own, half precision and compiled graphs close to them."""

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cibhash.encoder import HashEncoder
from cibhash.frozen_features import feature_extractor
from tests.datasets import tiny_encoder


def _images(count: int, seed: int = 0) -> Tensor:
    """Images that a random backbone tells apart: noise of another brightness each."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 128, (count, 3, 32, 32), generator=draws)
    return (noise + torch.randint(0, 128, (count, 3, 1, 1), generator=draws)).to(torch.uint8)


def _encoder(name: str = "test_resnet") -> HashEncoder:
    return tiny_encoder((16,), name=name)


@pytest.mark.parametrize("name", ["convnet-small", "test_resnet", "test_vit"])
def test_eager_features_are_the_encoders(name: str) -> None:
    encoder, images = _encoder(name), _images(5)
    features = feature_extractor(encoder)(images)
    with torch.inference_mode():
        expected = encoder.features(images)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_half_precision_is_close_in_direction_and_in_length(name: str) -> None:
    encoder, images = _encoder(name), _images(16)
    exact, half = (feature_extractor(encoder, precision=p)(images) for p in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert cosine_similarity(half, exact).min() > 0.99
    torch.testing.assert_close(half.norm(dim=1), exact.norm(dim=1), rtol=0.03, atol=0)
    # What it has to tell apart: the images, and not only what all have in common.
    mean = exact.mean(dim=0)
    assert cosine_similarity(half - mean, exact - mean).min() > 0.9


def test_autocast_ends_with_the_call() -> None:
    feature_extractor(_encoder("convnet-small"), precision="bfloat16")(_images(2))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


def test_no_gradient_reaches_the_images_batch_or_the_backbone() -> None:
    encoder = tiny_encoder((16,), train_from="all")
    features = feature_extractor(encoder)(_images(2))
    assert not features.requires_grad
    assert encoder.features(_images(2)).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_graph_gives_the_eager_features_for_full_and_short_batches() -> None:
    """Compiled once, for the first batch's size: a short last batch is padded, and the padding does not show."""
    encoder = _encoder()
    compiled, eager = feature_extractor(encoder, compiled=True), feature_extractor(encoder)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count, seed in ((6, 0), (6, 1), (2, 2), (1, 3), (6, 4)):
            images = _images(count, seed)
            found, expected = compiled(images), eager(images)
            assert found.shape == (count, encoder.num_features)
            assert found.dtype == torch.float32
            assert not found.requires_grad
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(eager(_images(6, 0)), eager(_images(6, 1)))
