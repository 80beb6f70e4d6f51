"""Reads TensorBoard event files, every record checked, without TensorBoard."""

import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tensorboardX.proto.event_pb2 import Event


class Point(NamedTuple):
    """One value of one curve."""

    name: str
    step: int
    value: float


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def events(path: Path) -> list[Event]:
    """All records of a file: length, its masked checksum, the event, its masked checksum."""
    content, found, position = path.read_bytes(), [], 0
    while position < len(content):
        head = content[position : position + 8]
        (size,) = struct.unpack("<Q", head)
        body = content[position + 12 : position + 12 + size]
        checksums = content[position + 8 : position + 12] + content[position + 12 + size : position + 16 + size]
        assert checksums == _masked(head) + _masked(body)
        event = Event()
        event.ParseFromString(body)
        found.append(event)
        position += 16 + size
    return found


def points(path: Path) -> list[Point]:
    """All scalars of a file, in the order in which they were written."""
    return [Point(v.tag, event.step, v.simple_value) for event in events(path) for v in event.summary.value]


def _masked(data: bytes) -> bytes:
    checksum = crc32c(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def steps_done_twice(path: Path, num_steps: int) -> list[int]:
    """The steps that a run repeated after an interruption: in one piece, and with the same loss both times."""
    losses = [point for point in points(path) if point.name == "step/loss"]
    count = Counter(point.step for point in losses)
    assert sorted(count) == list(range(1, num_steps + 1))
    assert max(count.values()) <= 2
    assert len(set(losses)) == len(count)
    again = sorted(step for step, number in count.items() if number == 2)
    assert not again or again == list(range(again[0], again[-1] + 1))
    return again
