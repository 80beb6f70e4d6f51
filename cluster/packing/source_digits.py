"""The source `digits`: scikit-learn's handwritten digits with a retrieval protocol of the hashing literature's kind.

Knows nothing of the other sources. The training images are part of the database.
"""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from cibhash.errors import ConfigError
from cluster.packing.source_items import Source, SourceItem, seeded_rank
from cluster.packing_config import PackConfig

DIGIT_QUERIES_PER_CLASS = 30
DIGIT_SIDE = 32


def digits(config: PackConfig) -> Source:
    """1,797 handwritten digits: 30 seeded queries per class; the others are database and training set alike.

    The 8 x 8 gray images become 32 x 32 RGB PNGs, bilinear.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ConfigError("digits come with scikit-learn: pip install 'cibhash[demo]'") from None
    bunch = load_digits()
    images, labels = bunch.images, bunch.target
    items = [
        SourceItem(f"digit-{number:04d}", "png", (int(label),), "", f"digits/{number}", data=_digit_png(image))
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    queries: set[str] = set()
    for label in range(10):
        keys = [item.key for item in items if item.labels == (label,)]
        queries.update(sorted(keys, key=lambda key: seeded_rank(config.seed, "query", key))[:DIGIT_QUERIES_PER_CLASS])
    dealt = [
        replace(item, split=split)
        for item in items
        for split in (("query",) if item.key in queries else ("database", "train"))
    ]
    return Source("digits", tuple(dealt), tuple(map(str, range(10))), split_name="digits", seeded=True)


def _digit_png(image: np.ndarray) -> bytes:
    gray = np.round(image * 255 / 16).astype(np.uint8)
    large = Image.fromarray(gray).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    large.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
