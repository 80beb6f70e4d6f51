"""The images that codes stand for: their bytes, by one range read out of the tar shard.

Knows nothing of indexes and pages. Nothing is unpacked or copied anywhere; a pointer is as good as the shard is old, so
what is no longer an image there is refused.
"""

from dataclasses import dataclass

from cibhash.errors import DataError
from cluster import storage

_MEDIA_TYPES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


@dataclass(frozen=True)
class Original:
    """Where the bytes of an image lie."""

    uri: str
    """Absolute URI of the tar shard."""
    offset: int
    size: int


def original_bytes(original: Original) -> bytes:
    """The compressed image, as it was packed; exactly one read.

    Raises:
        StorageError: the shard is missing, shorter or cannot be read.
        DataError: there is no image at this place, so the shard is another one by now.
    """
    data = storage.read_range(original.uri, original.offset, original.size)
    if not media_type(data):
        raise DataError(
            f"{original.uri} at offset {original.offset}: not a JPEG, PNG, WebP or GIF image "
            f"(first bytes {data[:8]!r}): was the shard replaced?"
        )
    return data


def media_type(data: bytes) -> str:
    """The media type of image bytes by their first bytes, empty for what no image of ours begins with."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _MEDIA_TYPES if data.startswith(magic)), "")
