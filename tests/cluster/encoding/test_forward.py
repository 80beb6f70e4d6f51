"""Passes of the encoder: padded, halved when memory ends, in half precision and compiled."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cibhash.encoder import encode, load_encoder
from cibhash.errors import ConfigError
from cluster.encoding.forward import Forward
from tests.datasets import published_encoder
from tests.patience import HANG_S

_VIEWS = np.random.default_rng(3).integers(0, 256, (11, 3, 32, 32), dtype=np.uint8)


class _Small(torch.nn.Module):
    """A backbone in a memory of so many images."""

    def __init__(self, backbone: torch.nn.Module, images: int, message: str) -> None:
        super().__init__()
        self.backbone, self.images, self.message, self.seen = backbone, images, message, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        if len(images) > self.images:
            raise RuntimeError(self.message)
        return self.backbone(images)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(published_encoder(tmp_path_factory.mktemp("encoder") / "encoder", (16,)))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_passes_of_any_size_give_the_same_codes(folder: Path, batch_size: int) -> None:
    encoder = load_encoder(folder)
    expected = encode(encoder, torch.from_numpy(_VIEWS))
    found = Forward(encoder, batch_size, "float32", compiled=False)(_VIEWS)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
    assert found.logits.shape == (11, 16)


def test_batches_are_halved_for_good_until_they_fit(folder: Path) -> None:
    encoder = load_encoder(folder)
    expected = encode(encoder, torch.from_numpy(_VIEWS))
    small = _Small(encoder.backbone, 3, "[enforce fail at alloc_cpu.cpp] not enough memory: you tried to allocate 9")
    encoder.backbone = small
    forward = Forward(encoder, 16, "float32", compiled=False)
    for _ in range(2):
        np.testing.assert_array_equal(forward(_VIEWS).codes, expected.codes)
    assert forward.batch_size == 2
    assert small.seen == [16, 8, 4, *[2] * 12]


def test_one_view_too_many_is_an_error_that_says_so(folder: Path) -> None:
    encoder = load_encoder(folder)
    encoder.backbone = _Small(encoder.backbone, 0, "not enough memory: you tried to allocate 7 bytes.\nStack")
    with pytest.raises(ConfigError, match=r"does not fit into memory with one view: .* 7 bytes\.$"):
        Forward(encoder, 2, "float32", compiled=False)(_VIEWS)


def test_other_failures_are_not_taken_for_want_of_memory(folder: Path) -> None:
    encoder = load_encoder(folder)
    small = _Small(encoder.backbone, 0, "shapes do not match")
    encoder.backbone = small
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Forward(encoder, 8, "float32", compiled=False)(_VIEWS)
    assert small.seen == [8]


_LIMITED = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from cibhash.encoder import load_encoder
from cluster.encoding.forward import Forward
torch.set_num_threads(1)
encoder = load_encoder(Path(sys.argv[1]))
forward = Forward(encoder, 8192, "float32", compiled=False)
views = np.zeros((16, 3, 32, 32), np.uint8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
print(len(forward(views).codes), forward.batch_size)
"""


def test_the_memory_limit_of_a_process_is_met(folder: Path) -> None:
    """What torch really says when the system refuses memory."""
    command = [sys.executable, "-c", _LIMITED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, batch_size = map(int, done.stdout.split()[-2:])
    assert rows == 16
    assert batch_size < 8192


def test_half_precision_changes_few_bits(folder: Path) -> None:
    encoder = load_encoder(folder)
    full, half = (Forward(encoder, 16, precision, compiled=False)(_VIEWS) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(full.features, half.features)
    np.testing.assert_allclose(full.features, half.features, rtol=0.1, atol=0.05)
    close = np.abs(full.logits) < np.abs(full.logits - half.logits).max()
    changed = np.unpackbits(full.codes ^ half.codes, axis=1, bitorder="little").astype(bool)
    assert not changed[~close].any()
