"""What a comparison of two encoders found, as `drift.json` holds it.

Knows nothing of how it is found or shown.
"""

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cluster.evaluation.results import Interval
from cluster.manifests import Manifest


class Part(BaseModel):
    """Base of the records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(Part):
    """One of the two tables."""

    codes_uri: str
    digest: str
    encoder_digest: str
    encoder_uri: str
    only_here: int
    """Images of the sample that the other table does not have, by their keys."""


class Score(Part):
    """A mean over the queries, with its bootstrap 95 % interval."""

    mean: float
    interval: Interval


class Findings(Manifest):
    """`drift.json`."""

    file_name: ClassVar[str] = "drift.json"
    noun: ClassVar[str] = "drift report"
    format: Literal["cibhash-drift-1"] = "cibhash-drift-1"
    old: Side
    new: Side
    bits: int
    images: int
    queries: int
    k: int
    tolerance: float
    seed: int
    flip_rates: tuple[float, ...]
    """Per bit: share of the images in whose codes it differs."""
    flipped: tuple[float, ...]
    """By number of bits, 0 to all: share of the images whose codes differ in so many."""
    mean_flipped: float
    unchanged: float
    """Share of the images whose code is the same."""
    overlap: Score
    """Share of the k nearest that old codes and new ones have in common."""
    overlap_mixed: Score
    """Share of the k nearest among old codes that new queries find there too."""
    overlap_by_chance: float
    map_old: Score | None
    """mAP@k of old queries among old codes; None without labels, as all below."""
    map_new: Score | None
    map_mixed: Score | None
    """Of new queries among old codes."""
    new_minus_old: Score | None
    """Paired over the queries."""
    mixed_minus_old: Score | None
    verdict: str
    """Two sentences: whether the new encoder finds better, and whether its codes may stand among old ones."""
    may_mix: bool
    """Whether new codes may stand among old ones, within the tolerance."""
