"""NUS-WIDE and MSCOCO in the layouts of their publishers and of the hashing field's lists, small or of empty files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.datasets import plain_image, png

CONCEPTS = tuple(f"concept{chr(ord('a') + number)}" for number in range(23))
"""More than the 21 that count; the last two are the rarest."""


def touch_images(folder: Path, names: Iterable[str], *, real: bool = False) -> Path:
    """Images at these paths: PNGs of one color each under whatever suffix, or empty files."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(plain_image(number)) if real else b"")
    return folder


def list_line(path: str, labels: Iterable[int], width: int) -> str:
    """A line of HashNet's lists."""
    chosen = set(labels)
    return f"{path} {' '.join('1' if label in chosen else '0' for label in range(width))}\n"


def write_lists(folder: Path, lists: Mapping[str, Mapping[str, Sequence[int]]], width: int) -> Path:
    """Lists by file name without suffix, each of labels by path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in lists.items():
        text = "".join(list_line(path, labels, width) for path, labels in images.items())
        (folder / f"{name}.txt").write_text(text)
    return folder


def write_nuswide_official(folder: Path, per_concept: int) -> Path:
    """`ImageList`, `Groundtruth` and an empty image per line; image i has concept i % 21, every tenth the next too."""
    count = 21 * per_concept
    names = [f"{CONCEPTS[number % 21]}/{number:06d}_77.jpg" for number in range(count)]
    names.append("none/999999_1.jpg")
    touch_images(folder / "Flickr", names)
    (folder / "ImageList").mkdir()
    (folder / "ImageList/Imagelist.txt").write_text("".join(name.replace("/", "\\") + "\r\n" for name in names))
    labels = folder / "Groundtruth/AllLabels"
    labels.mkdir(parents=True)
    for concept, name in enumerate(CONCEPTS):
        flags = [n % 21 == concept or (n % 10 == 0 and (n + 1) % 21 == concept) for n in range(count)]
        flags.append(False)
        (labels / f"Labels_{name}.txt").write_text("".join(f"{int(flag)}\n" for flag in flags))
    return folder


def write_coco_official(folder: Path, train: int, val: int, *, indent: int | None = None) -> Path:
    """Annotations of 2014 and an empty file per image; category ids are 3, 6, ..., 240; every 50th image has none."""
    categories = [{"id": 3 * (80 - number), "name": f"category{80 - number}"} for number in range(80)]
    (folder / "annotations").mkdir(parents=True)
    for part, first, count in (("train2014", 0, train), ("val2014", train, val)):
        images = [{"id": 10 + n, "file_name": f"COCO_{part}_{n:012d}.jpg"} for n in range(first, first + count)]
        touch_images(folder / part, (str(image["file_name"]) for image in images))
        annotations = [
            {
                "id": 2 * n + twice,
                "image_id": 10 + n,
                "category_id": 3 * (1 + (n + 7 * twice) % 80),
                "segmentation": [[1]],
            }
            for n in range(first, first + count)
            for twice in range(2)
            if n % 50
        ]
        content = {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": annotations}
        path = folder / f"annotations/instances_{part}.json"
        path.write_text(json.dumps({**content, "categories": categories}, indent=indent))
    return folder
