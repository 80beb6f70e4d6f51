"""Reads TensorBoard event files, every record checked, without TensorBoard."""

import struct
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
