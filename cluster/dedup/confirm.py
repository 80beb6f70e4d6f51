"""Looks at the images of pairs: how much the originals correlate at few pixels, mirrored or not.

Knows nothing of codes. An image that cannot be read confirms nothing. The driver holds 768 bytes of every image that is
in a pair; each is read once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import ray
from PIL import Image

from cibhash.errors import CIBHashError
from cibhash.images import decode_image
from cibhash.types import Ids
from cibhash.views import Pixels
from cluster.dedup.plan import DedupPlan
from cluster.dedup.rows import Rows, look_up, originals_of
from cluster.in_flight import completed, default_limit, named_call
from cluster.originals import Original, original_bytes
from cluster.telemetry import progress

SIDE = 16
_IMAGES_PER_TASK = 1000
_PAIRS_PER_TASK = 2**19
_PAIRS_AT_ONCE = 2**12
_NOTHING = 1.0
"""Of all that is left of an image: less than a level of brightness in a pixel."""
Correlations = npt.NDArray[np.float32]


def correlations(plan: DedupPlan, rows: Rows, first: Ids, second: Ids) -> Correlations:
    """How much the images of each pair of rows correlate.

    Args:
        plan: The tables.
        rows: Their images.
        first: int64 (E,).
        second: int64 (E,).

    Returns:
        float32 (E,), -1 to 1, as `correlation`; NaN where an image cannot be read.
    """
    wanted, places = np.unique(np.concatenate((first, second)), return_inverse=True)
    pixels, is_read = _read_all(plan, rows, wanted)
    one, other = places[: len(first)], places[len(first) :]
    order, shared = np.lexsort((other, one)), ray.put(pixels)  # tasks then look at few images
    calls = []
    for start in range(0, len(order), _PAIRS_PER_TASK):
        some = order[start : start + _PAIRS_PER_TASK]
        calls.append((some, named_call(_correlate, f"pairs {start}", shared, one[some], other[some])))
    result = np.empty(len(first), np.float32)
    with progress("dedup: looking at pairs", len(first), "pairs") as line:
        for some, found in completed(calls, default_limit()):
            result[some] = found
            line.advance(len(found))
    result[~(is_read[one] & is_read[other])] = np.nan
    return result


def correlation(first: Pixels, second: Pixels) -> Correlations:
    """Of small images uint8 (N, S, S, 3) pair by pair: Pearson's, of the second as it is or mirrored, the larger one.

    Means of rows and columns are taken away before, per color: any two seas below a sky, or birds in a blue one, would
    correlate otherwise. Images that then have nothing left have 0.
    """
    return _larger(_centered(first), _centered(second))


def _larger(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Correlations:
    plain, mirrored = (np.einsum("nhwc,nhwc->n", first, other) for other in (second, second[:, :, ::-1]))
    best: Correlations = np.maximum(plain, mirrored)
    return best


def _centered(images: Pixels) -> npt.NDArray[np.float32]:
    values = images.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values -= values.mean(axis=2, keepdims=True)
    norms = np.sqrt(np.square(values).sum(axis=(1, 2, 3), keepdims=True))
    centered: npt.NDArray[np.float32] = np.where(norms > _NOTHING, values / np.maximum(norms, _NOTHING), 0)
    return centered


def _read_all(plan: DedupPlan, rows: Rows, wanted: Ids) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Small images uint8 (N, S, S, 3), and which could be read."""
    found = originals_of(look_up(plan, rows, wanted, ["shard", "offset", "size"]))
    pixels, is_read = np.zeros((len(wanted), SIDE, SIDE, 3), np.uint8), np.zeros(len(wanted), np.bool_)
    calls = [
        (some, named_call(_read_small, f"originals {some.start}", found[some]))
        for some in (slice(start, start + _IMAGES_PER_TASK) for start in range(0, len(wanted), _IMAGES_PER_TASK))
    ]
    with progress("dedup: originals", len(wanted), "images") as line:
        for some, (small, read) in completed(calls, default_limit()):
            pixels[some], is_read[some] = small, read
            line.advance(len(read))
    return pixels, is_read


@ray.remote(num_cpus=1)
def _correlate(pixels: Pixels, one: Ids, other: Ids) -> Correlations:
    used, places = np.unique(np.concatenate((one, other)), return_inverse=True)
    images = _centered(pixels[used])
    found = np.empty(len(one), np.float32)
    for start in range(0, len(one), _PAIRS_AT_ONCE):
        at = slice(start, start + _PAIRS_AT_ONCE)
        found[at] = _larger(images[places[: len(one)][at]], images[places[len(one) :][at]])
    return found


@ray.remote(num_cpus=1)
def _read_small(originals: Sequence[Original]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    small = np.zeros((len(originals), SIDE, SIDE, 3), np.uint8)
    read = np.zeros(len(originals), np.bool_)
    for number, original in enumerate(originals):
        try:
            image = decode_image(original_bytes(original))
        except CIBHashError:
            continue
        small[number] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
        read[number] = True
    return small, read
