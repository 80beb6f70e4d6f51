"""What a search for duplicates found, as `dedup.json` holds it: the manifest of its output, written last.

Knows nothing of how it is computed or shown. Layout, movable as a whole:

    pairs/part-000000.parquet    id_a, id_b, key_a, key_b, split_a, split_b, distance, correlation; closest first
    groups/part-000000.parquet   id, key, split, labels, group, is_representative, distance; largest group first
    report.html                  for people
    dedup.json                   written last and create-only
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cluster.manifests import ListedFile, Manifest


class Record(BaseModel):
    """Base of the records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitRecord(Record):
    """One code table."""

    name: str
    digest: str
    dataset_digest: str
    images: int
    duplicates: int
    """Images that are in a group and not its representative."""


class Overlap(Record):
    """Images of a split that have another image of a split close by; a split with itself, too."""

    split: str
    other: str
    images: tuple[int, ...]
    """How many, within radius 0, 1, ... up to the one asked for."""
    pairs: tuple[int, ...]
    """Pairs of images at distance 0, 1, ...; the same for both orders of the splits."""


class Calibration(Record):
    """How far apart copies, nearest images and images of one label are, from a sample."""

    sampled: int
    nearest: tuple[int, ...]
    """Sampled images by the distance to the nearest other image, 0 to bits."""
    pairs: tuple[int, ...]
    """Pairs of a sampled image and any other by distance."""
    sharing: tuple[int, ...]
    """Of these, those that share a label; empty where no image has one."""
    copies: tuple[int, ...]
    """Copies by the distance to their original; empty where none could be made."""
    why_no_copies: str
    max_confused: float
    suggested: int | None
    """Largest radius within which at most `max_confused` of the sampled images have another; None: not even 0."""


class Inputs(Record):
    """What decides the result."""

    digests: tuple[str, ...]
    names: tuple[str, ...]
    radius: str
    confirm: float
    pairs_per_group: int
    sampled: int
    max_confused: float
    seed: int


class PartFile(ListedFile):
    """One Parquet file."""

    rows: int


class DedupManifest(Manifest):
    """`dedup.json`."""

    file_name: ClassVar[str] = "dedup.json"
    noun: ClassVar[str] = "search for duplicates"
    format: Literal["cibhash-dedup-1"] = "cibhash-dedup-1"
    encoder_digest: str
    bits: int
    inputs: Inputs
    radius: int
    splits: tuple[SplitRecord, ...]
    distinct_codes: int
    candidates: tuple[int, ...]
    """All pairs of images by the distance of their codes, 0 to the radius."""
    looked_at: int
    """Pairs whose originals were compared; 0 without --confirm."""
    unreadable: int
    """Pairs of which an original could not be read, and which were therefore not confirmed."""
    pairs: int
    """Pairs of which groups were made: all candidates, or those confirmed."""
    pairs_listed: int
    groups: int
    grouped: int
    """Images in groups."""
    largest_group: int
    disagreeing_groups: int
    """Groups with an image that has labels, but none of its representative's."""
    overlaps: tuple[Overlap, ...]
    calibration: Calibration | None
    notes: tuple[str, ...]
    pair_parts: tuple[PartFile, ...]
    group_parts: tuple[PartFile, ...]
    report: ListedFile

    @property
    def images(self) -> int:
        """Of all splits."""
        return sum(split.images for split in self.splits)

    @property
    def unlisted(self) -> int:
        """Candidates beyond the limit per group: counted, but not listed, and not looked at by --confirm."""
        return sum(self.candidates) - (self.looked_at if self.inputs.confirm else self.pairs_listed)

    @property
    def duplicates(self) -> int:
        """Images that are not needed beside their group's representative."""
        return self.grouped - self.groups
