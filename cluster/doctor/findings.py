"""Everything that doctor can find, as one table: how bad it is, what it means, and what the pipeline does with it.

Knows nothing of how it is found. An error is what training or encoding stops at or refuses; a warning is what makes
results worse than they look; a note is what is converted or passed over in a defined way.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Unit = Literal["shards", "members", "images", "samples", "labels", "datasets"]


@dataclass(frozen=True)
class FindingKind:
    """One kind of finding."""

    name: str
    severity: Severity
    unit: Unit
    """What is counted; the share is of a dataset's shards, samples or labels."""
    meaning: str
    consequence: str
    """What the pipeline does with it."""


_STOP = "train and encode stop at it"
_REFUSED = "encode quarantines it, train stops at it"
_KINDS = (
    # the file
    FindingKind("missing_shard", "error", "shards", "listed by the manifest, but not there", _STOP),
    FindingKind("not_a_tar", "error", "shards", "not an uncompressed tar at all", _STOP),
    FindingKind("truncated_tar", "error", "shards", "the tar ends inside a header or a member", _STOP),
    FindingKind("damaged_tar", "error", "shards", "bytes where a header should be", _STOP),
    FindingKind(
        "after_end", "error", "shards", "members behind the end marker: tars joined into one", _STOP
    ),
    FindingKind("altered_shard", "error", "shards", "size or SHA-256 is not what the manifest says", _STOP),
    FindingKind("wrong_count", "error", "shards", "not as many samples as the manifest says", _STOP),
    FindingKind(
        "no_end_marker", "warning", "shards", "cut at the end of a member, or never finished", "it is read as it is"
    ),
    FindingKind(
        "no_manifest", "warning", "datasets", "shards without dataset.json", "no job takes it: cibhash adopt makes one"
    ),
    FindingKind("empty_dataset", "error", "datasets", "no sample at all", "every job refuses it"),
    # members and samples
    FindingKind("irregular_member", "error", "members", "a link, a device or a sparse file", _STOP),
    FindingKind("oversized_member", "error", "members", "above the 64 MiB that a member may have", _STOP),
    FindingKind("no_key", "error", "members", "a name without a key, or one that is not UTF-8", _STOP),
    FindingKind("missing_image", "error", "members", "a key without an image (jpg, jpeg, png, webp)", _REFUSED),
    FindingKind("split_sample", "error", "members", "members of one key that are not adjacent", _STOP),
    FindingKind("duplicate_key", "error", "samples", "a key that comes again in its shard", _STOP),
    FindingKind("several_images", "error", "samples", "a key with several images", _REFUSED),
    FindingKind(
        "duplicate_key_across_shards", "warning", "samples", "a key that another shard of the dataset has too",
        "both are encoded; key:NAME finds the first",
    ),
    FindingKind("ignored_member", "note", "members", "neither image nor cls nor json", "it is never read"),
    # images
    FindingKind(
        "undecodable", "error", "images", "the decoder refuses the image", _REFUSED
    ),
    FindingKind(
        "oversized_image", "error", "images", "above 20 MiB or 50 megapixels",
        "encode quarantines it undecoded, train stops at it",
    ),
    FindingKind("tiny_image", "warning", "images", "a side below 16 pixels", "it is enlarged, there is little to see"),
    FindingKind("blank_image", "warning", "images", "one color all over", "all of them get the same code"),
    FindingKind(
        "duplicate_image", "warning", "images", "the same bytes again in its dataset", "each is an image of its own"
    ),
    FindingKind(
        "split_leak", "warning", "images", "the same bytes in another split", "queries find what was seen before"
    ),
    FindingKind(
        "shared_training_image", "note", "images", "images of train that are in database too", "usual in this field"
    ),
    FindingKind("odd_shape", "note", "images", "one side more than 4 times the other", "it is squeezed to a square"),
    FindingKind("animated_image", "note", "images", "several frames", "the first frame is taken"),
    FindingKind("sixteen_bit", "note", "images", "16 bits per channel", "scaled to 8 bits"),
    FindingKind("cmyk", "note", "images", "colors for print", "converted to RGB without a profile"),
    FindingKind("palette", "note", "images", "colors from a palette", "converted to RGB"),
    FindingKind("grayscale", "note", "images", "one channel", "repeated as three"),
    FindingKind("alpha", "note", "images", "transparency", "composed on white"),
    FindingKind("exif_rotated", "note", "images", "stored otherwise than shown", "turned as EXIF says"),
    FindingKind("color_profile", "note", "images", "an ICC profile other than sRGB", "ignored: colors may be off"),
    FindingKind("other_format", "note", "images", "not the format of its suffix", "decoded by content"),
    # labels
    FindingKind("bad_label", "error", "samples", "a label that is no integer from 0 to 2147483647", _REFUSED),
    FindingKind("label_conflict", "warning", "samples", "cls and json disagree", "cls is taken"),
    FindingKind(
        "partly_labeled", "warning", "samples", "no label where others have one", "nothing is relevant to it"
    ),
    FindingKind(
        "duplicate_conflict", "warning", "images", "the same bytes under different labels", "each keeps its own labels"
    ),
    FindingKind("absent_label", "warning", "labels", "named by classes.json, but on no image", "names are for people"),
    FindingKind("unnamed_label", "warning", "labels", "on images, but not in classes.json", "names are for people"),
    FindingKind(
        "unbalanced_labels", "note", "datasets", "a label with 10 times as many images as another",
        "frequent labels weigh more in mAP",
    ),
)  # fmt: skip
KINDS = {kind.name: kind for kind in _KINDS}
"""By name, in the order in which they are shown within a severity."""


@dataclass(frozen=True)
class Offender:
    """One place where something was found."""

    dataset: str
    """Name of the dataset within this check."""
    shard: str
    """URI; empty: the dataset as a whole."""
    name: str
    """Key, or name of the member or label; empty: the shard as a whole."""
    detail: str
    offset: int = -1
    """Of the image inside the shard; -1: there is none to show."""
    size: int = 0
