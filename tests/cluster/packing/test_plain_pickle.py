"""Pickles of plain data are read, and whatever else a pickle can do is refused before it happens."""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cibhash.errors import DataError
from cluster.packing.plain_pickle import PlainArray, read_plain
from tests.cifar10_batches import Batch, python2_pickle

PLAIN: list[Any] = [
    {"a": [1, 2, -3, 10**6, 10**30], b"b": (True, False, None), "c": {}, "d": ((), (1,), (1, 2), (1, 2, 3, 4))},
    [["x" * 300, "ü", b"\x00\xff", b"y" * 300]] * 3,
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", PLAIN)
def test_plain_data_of_every_protocol(value: Any, protocol: int) -> None:
    assert read_plain(pickle.dumps(value, protocol), "file") == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol(protocol: int) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    found = read_plain(pickle.dumps({"data": array, "again": array}, protocol), "file")
    assert found["data"] == found["again"] == PlainArray("u1", (4, 6), array.tobytes())


def test_what_python_2_wrote() -> None:
    batch = Batch(0, [3, 1, 4])
    found = read_plain(python2_pickle(batch), "file")
    assert found["labels"] == [3, 1, 4]
    assert found["data"] == PlainArray("u1", (3, 3072), batch.pixels.tobytes())
    assert found["filenames"][2] == "file_2.png"
    assert pickle.loads(python2_pickle(batch), encoding="latin1")["data"].tolist() == batch.pixels.tolist()


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Instance:
    pass


@pytest.mark.parametrize("protocol", range(6))
def test_a_bomb_does_not_go_off(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "executed"
    for value in (Bomb(str(target)), {"labels": [1], "data": [Bomb(str(target))]}):
        with pytest.raises(DataError, match=r"file: refers to (posix|nt)\.mkdir, expected arrays"):
            read_plain(pickle.dumps(value, protocol), "file")
    assert not target.exists()


def opcodes(name: str, arguments: bytes) -> bytes:
    """A call of a global with the arguments that these instructions leave."""
    return b"c" + name.encode() + b"\n" + arguments + b"R."


@pytest.mark.parametrize(
    "content",
    [
        opcodes("builtins\neval", b"(X\x01\x00\x00\x001t"),
        opcodes("numpy\nload", b"(X\x01\x00\x00\x00at"),
        opcodes("numpy.core.multiarray\n_reconstruct.__globals__", b"(t"),
        b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n.",  # INST
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
        b"\x80\x02cnumpy\nndarray\n(t\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02P1\n.",  # PERSID
        b"\x80\x02cnumpy\nndarray\n(tR.",
        b"\x80\x02]}b.",  # BUILD on a list
    ],
)
def test_other_instructions_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^file: "):
        read_plain(content, "file")


@pytest.mark.parametrize(
    "value", [Instance(), np.float64(1.5), np.asfortranarray(np.ones((2, 3), np.uint8)), 1.5, {1}, Path("a")]
)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^file: "):
        read_plain(pickle.dumps(value), "file")


def test_every_cut_is_an_error() -> None:
    content = pickle.dumps({"data": np.zeros((2, 4), np.uint8), "labels": [1, 2]}, 2)
    for length in range(len(content)):
        with pytest.raises(DataError, match=r"^file: "):
            read_plain(content[:length], "file")


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 200))
def test_damage_is_a_data_error_or_harmless(noise: bytes, at: int) -> None:
    content = pickle.dumps({"data": np.zeros((2, 4), np.uint8), "labels": [1, 2], "names": ["a"] * 5}, 2)
    for damaged in (noise, content[:at] + noise + content[at + len(noise) :]):
        with contextlib.suppress(DataError):
            read_plain(damaged, "file")
