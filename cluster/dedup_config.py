"""What a person writes to find near-duplicates.

Knows nothing of the command line and of how they are found.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from cluster.config import JobConfig, Seed

AUTO = "auto"
_LISTED, _LOOKED_AT = 1000, 50_000_000


def _split_each(value: object) -> object:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return value
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip())


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class DedupConfig(JobConfig):
    """Find near-duplicates in code tables, and images that the splits of a dataset share.

    Every pair of codes within the radius is found, exactly. Images connected by such pairs make a group, of which the
    smallest id of the first-named table is the representative. Several tables are splits: name first the one whose
    images are to be kept.

      cibhash dedup --codes codes/database --output duplicates --radius 2
      cibhash dedup --codes codes/query,codes/database --output leakage --radius 8 --confirm 0.85

    Codes of an encoder trained for meaning put different images of one kind close together: --calibrate shows how far
    apart copies and other images lie, and --confirm looks at the images of every pair.
    """

    codes: Annotated[tuple[str, ...], BeforeValidator(_split_each)]
    """Code tables by one encoder, separated by commas; each is a split, called by its folder."""
    output: str
    """Where dedup.json, report.html, pairs/ and groups/ go; with the same inputs a finished one is returned."""
    radius: Annotated[str, BeforeValidator(_as_text)] = AUTO
    """Largest Hamming distance of a pair; `auto`: the largest within which at most --max-confused of the images have
    any other image."""
    confirm: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Keep only pairs whose originals correlate by so much at 16 x 16 pixels, mirrored or not, as 0.85; 0: all."""
    calibrate: NonNegativeInt | None = None
    """Sampled images that are compared with all others and with copies of their own, to show what a radius means.
    Default: 1,000 for radius auto, else none."""
    max_confused: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """For radius auto: share of the sampled images that may have another image within the radius."""
    encoder: str = ""
    """The encoder directory, for the copies of --calibrate; default: the one that the tables name."""
    pairs_per_group: PositiveInt | None = None
    """Pairs listed of a group, the closest ones; of those beyond, the report has the count. Default: 1,000; with
    --confirm, which looks at no others, 50 million: the driver needs some 200 bytes for each."""
    method: Literal["auto", "all-pairs", "multi-index"] = "auto"
    """How pairs are found: by comparing all codes, or only those that share pieces. Both find the same; auto takes what
    is faster."""
    block_rows: NonNegativeInt = 0
    """Codes of a block that one task compares with another block; 0: chosen. The result does not depend on it."""
    seed: Seed = 0
    """Of the sample and its copies."""

    @property
    def fixed_radius(self) -> int | None:
        """The radius, if it is given."""
        return None if self.radius == AUTO else int(self.radius)

    @property
    def pair_limit(self) -> int:
        """Pairs of a group that are listed, or looked at."""
        return self.pairs_per_group or (_LOOKED_AT if self.confirm else _LISTED)

    @property
    def sampled(self) -> int:
        """Images to calibrate with."""
        return (1000 if self.radius == AUTO else 0) if self.calibrate is None else self.calibrate

    @model_validator(mode="after")
    def _check(self) -> "DedupConfig":
        if not self.codes:
            raise ValueError("codes: at least one code table is needed")
        if self.radius != AUTO and not (self.radius.isascii() and self.radius.isdecimal()):
            raise ValueError(f"radius {self.radius!r}: expected a whole number of bits, at least 0, or auto")
        if self.radius == AUTO and not self.sampled:
            raise ValueError("radius auto is chosen from a sample: give --calibrate at least 1, or a radius")
        return self
