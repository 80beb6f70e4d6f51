import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.binary import (
    as_words,
    pack_bits,
    prefix,
    unpack_bits,
)

BITS = st.tuples(st.integers(0, 6), st.integers(1, 9)).flatmap(
    lambda shape: arrays.arrays(np.uint8, (shape[0], 8 * shape[1]), elements=st.integers(0, 1))
)


@settings(derandomize=True, deadline=None)
@given(BITS)
def test_unpack_inverts_pack(bits):
    packed = pack_bits(bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (bits.shape[0], bits.shape[1] // 8)
    np.testing.assert_array_equal(unpack_bits(packed), bits)
    for n, j in np.ndindex(bits.shape):
        assert (packed[n, j // 8] >> (j % 8)) & 1 == bits[n, j]


def test_bit_order_is_little_endian_within_the_byte():
    bits = np.zeros((1, 16), dtype=bool)
    bits[0, [0, 3, 15]] = True
    np.testing.assert_array_equal(pack_bits(bits), [[0b00001001, 0b10000000]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_pack_takes_tensors(dtype):
    bits = torch.arange(32).reshape(2, 16) % 3 == 0
    tensor = bits.to(dtype)
    if dtype == torch.float32:
        tensor.requires_grad_()
    np.testing.assert_array_equal(pack_bits(tensor), pack_bits(bits.numpy()))


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (np.zeros((2, 12)), "12 bits"),
        (np.zeros((2, 0)), "0 bits"),
        (np.zeros(16), r"\(16,\)"),
        (np.full((1, 8), -1), "-1"),
        (np.full((1, 8), 2.0), "2.0"),
        (np.full((1, 8), np.nan), "nan"),
    ],
)
def test_pack_refuses_what_is_not_bits(bits, message):
    with pytest.raises(ValueError, match=message):
        pack_bits(bits)


@pytest.mark.parametrize("packed", [np.zeros((2, 2)), np.zeros(8, np.uint8), np.zeros((3, 0), np.uint8), [[1]]])
def test_unpack_refuses_what_is_not_codes(packed):
    with pytest.raises(ValueError, match="packed"):
        unpack_bits(packed)


def test_prefix_is_the_code_of_the_first_bits():
    bits = np.random.default_rng(0).integers(0, 2, (5, 64))
    for length in (8, 16, 56, 64):
        np.testing.assert_array_equal(prefix(pack_bits(bits), length), pack_bits(bits[:, :length]))
        assert prefix(pack_bits(bits), length).flags.c_contiguous
    for length in (0, -8, 12, 72):
        with pytest.raises(ValueError, match=str(length)):
            prefix(pack_bits(bits), length)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9, 16, 32])
def test_words_keep_every_bit(width):
    codes = np.random.default_rng(width).integers(0, 256, (7, width), dtype=np.uint8)
    words = as_words(codes)
    assert words.shape[1] == 7
    as_bytes = np.ascontiguousarray(words.T).view(np.uint8)
    np.testing.assert_array_equal(as_bytes[:, :width], codes)
    assert not as_bytes[:, width:].any()
