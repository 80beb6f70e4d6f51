"""On a CUDA device: views, features, loss and training are those of the CPU."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cibhash.encoder import EncoderSpec, HashEncoder, encode, new_encoder
from cibhash.frozen_features import Precision, feature_extractor
from cibhash.loop import EpochStats, Objective, StepStats, train_epoch
from cibhash.objective import CodeSampling, cibhash_loss
from cibhash.specs import CONVNET_SMALL, BackboneSpec, ViewSpec
from cibhash.types import ViewBatch
from cluster.training.view_making import make_views

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
_DEVICE, _CPU = torch.device("cuda"), torch.device("cpu")


def _images(count: int = 24) -> list[Image.Image]:
    """Smooth pictures of different sizes."""
    draws = np.random.default_rng(0)
    coarse = [Image.fromarray(draws.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((40 + n, 60 - n), Image.Resampling.BICUBIC) for n, image in enumerate(coarse)]


def _pixels(count: int, size: int = 32, view: int = 0) -> Tensor:
    return make_views(_images(count), range(count), ViewSpec(), size, seed=0, epoch=0, view=view).on(_CPU)


def _encoder(name: str = CONVNET_SMALL, **backbone: str) -> HashEncoder:
    spec = BackboneSpec(name, "none", 64 if name != CONVNET_SMALL else 32, **backbone)  # type: ignore[arg-type]
    return new_encoder(EncoderSpec(spec, (8, 32), hidden=48), seed=0).eval()


def test_device_views_are_those_of_the_cpu_to_a_gray_level() -> None:
    images = _images()
    made = make_views(images, range(len(images)), ViewSpec(engine="device"), 32, seed=3, epoch=1, view=0)
    found, expected = made.on(_DEVICE), made.on(_CPU)
    assert found.device.type == "cuda"
    assert found.dtype == torch.uint8
    assert (found.cpu().int() - expected.int()).abs().max() <= 1
    assert (expected.int() - made.images.int()).abs().float().mean() > 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", [CONVNET_SMALL, "mobilenetv2_100"])
def test_features_are_those_of_the_cpu_in_float32(name: str, compiled: bool, precision: Precision) -> None:
    encoder, images = _encoder(name), _pixels(20, 64 if name != CONVNET_SMALL else 32)
    expected = feature_extractor(encoder)(images)
    extract = feature_extractor(copy.deepcopy(encoder).to(_DEVICE), precision=precision, compiled=compiled)
    for count in (20, 7):  # the second batch is smaller than the one that was compiled
        found = extract(images[:count].to(_DEVICE))
        assert (found.dtype, found.shape, found.device.type) == (torch.float32, expected[:count].shape, "cuda")
        assert not found.requires_grad
        off = (found.cpu() - expected[:count]).norm(dim=1) / expected[:count].norm(dim=1)
        # Convolutions may be computed in TF32, which has 10 bits of mantissa; bfloat16 has 7.
        assert off.max() < (0.01 if precision == "float32" else 0.1)


def test_codes_are_those_of_the_cpu_where_logits_are_clear() -> None:
    encoder, images = _encoder(), _pixels(24)
    expected, found = encode(encoder, images), encode(copy.deepcopy(encoder).to(_DEVICE), images)
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-3)
    clear = np.abs(expected.logits) > 2e-3
    bits = [np.unpackbits(codes, axis=1, bitorder="little") for codes in (expected.codes, found.codes)]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(bits[0][clear], bits[1][clear])


@pytest.mark.parametrize("sampling", ["threshold", "relaxed"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("images", "prefixes"), [(5, ()), (300, (8, 16, 64))])
def test_loss_and_gradient_are_those_of_the_cpu(
    images: int, prefixes: tuple[int, ...], dtype: torch.dtype, limit: float, sampling: CodeSampling
) -> None:
    draws = torch.Generator().manual_seed(images)
    views = [torch.rand(images, 64, generator=draws, dtype=dtype) for _ in range(2)]
    results = []
    for device in (_CPU, _DEVICE):
        p_a, p_b = (view.to(device).requires_grad_() for view in views)
        terms = cibhash_loss(p_a, p_b, beta=0.1, prefixes=prefixes, code_sampling=sampling)
        gradients = torch.autograd.grad(terms.total, (p_a, p_b))
        results.append([tensor.detach().cpu() for tensor in (*terms, *gradients)])
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() <= limit * expected.norm()


def test_bernoulli_codes_are_drawn_on_the_device() -> None:
    p_a, p_b = (torch.rand(16, 8, device=_DEVICE) for _ in range(2))
    losses = [
        cibhash_loss(
            p_a, p_b, code_sampling="bernoulli", generator=torch.Generator(_DEVICE).manual_seed(seed)
        ).total.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def _train(
    model: nn.Module, views: tuple[Tensor, Tensor], device: torch.device, sampling: CodeSampling
) -> tuple[nn.Module, EpochStats]:
    """Two epochs of three steps by plain descent: Adam turns rounding of a gradient near zero into a full step."""
    model = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)

    def batches() -> Iterator[ViewBatch]:
        for a, b in zip(*(view.to(device).chunk(3) for view in views), strict=True):
            yield ViewBatch(a, b, np.arange(len(a)))

    seen: list[StepStats] = []
    for epoch in range(2):
        stats = train_epoch(
            model,
            optimizer,
            batches(),
            Objective((8, 32), code_sampling=sampling),
            epoch=epoch,
            after_step=lambda step, _: seen.append(step),
        )
    assert [step.images for step in seen] == [8] * 6
    return model.cpu(), stats


def _assert_same(expected: tuple[nn.Module, EpochStats], found: tuple[nn.Module, EpochStats], limit: float) -> None:
    for (name, a), (_, b) in zip(expected[0].named_parameters(), found[0].named_parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=limit, atol=limit, msg=name)
    assert (found[1].loss, found[1].contrastive, found[1].kl) == pytest.approx(
        (expected[1].loss, expected[1].contrastive, expected[1].kl), rel=limit
    )
    assert found[1].bit_entropy == pytest.approx(expected[1].bit_entropy, abs=0.01)


def test_a_head_trains_as_on_the_cpu() -> None:
    draws = torch.Generator().manual_seed(1)
    head = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 32)).requires_grad_()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    views = tuple(torch.randn(24, 40, generator=draws) for _ in range(2))
    before = copy.deepcopy(head)
    runs = [_train(head, (views[0], views[1]), device, "threshold") for device in (_CPU, _DEVICE)]
    _assert_same(runs[0], runs[1], 1e-4)
    first = next(before.parameters())
    assert not torch.equal(next(runs[1][0].parameters()), first)


def test_a_whole_encoder_trains_as_on_the_cpu() -> None:
    """By relaxed codes: a logit that rounding takes over zero would turn a bit."""
    views = _pixels(24, view=0), _pixels(24, view=1)
    with torch.backends.cudnn.flags(allow_tf32=False):
        runs = [_train(_encoder(train_from="all"), views, device, "relaxed") for device in (_CPU, _DEVICE)]
    _assert_same(runs[0], runs[1], 1e-3)
