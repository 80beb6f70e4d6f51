"""What an evaluation found, as `metrics.json` holds it.

Knows nothing of how it is computed or shown. The same tables, lengths, k and seed give the same JSON, wherever the
tables lie and however the work was split.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.evaluation.plan import Role

EMPTY_BALL_RADIUS = 2


class Result(BaseModel):
    """Base of the records: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Result):
    """Bootstrap 95 % interval over queries."""

    low: float
    high: float


class SeriesMetrics(Result):
    """One method at one code length; means over queries."""

    method: str
    bits: int
    map_at_k: float
    """Tie-aware expectation, hashing denominator; queries without a relevant item in the top k count as 0."""
    interval: Interval
    map_worst: float
    """Relevant items last within every distance."""
    map_best: float
    """Relevant items first within every distance."""
    map_at_k_min_kr: float
    """The expectation with denominator min(k, relevant items of the database)."""
    map_at_k_r: float
    """The expectation with denominator relevant items of the database."""
    precision_at_k: float
    recall_at_k: float
    empty_ball_share: float | None
    """Queries without any item within radius 2; None where distances are weighted, and no radius means the same to two
    queries."""
    median_tie_block: float
    """Items that share the distance at which rank k falls, median over queries."""
    precision_by_radius: tuple[float, ...]
    """Radius 0 to bits; empty where distances are weighted."""
    recall_by_radius: tuple[float, ...]
    ranks: tuple[int, ...]
    precision_by_rank: tuple[float, ...]
    recall_by_rank: tuple[float, ...]


class FloatMetrics(Result):
    """Exact cosine retrieval on the float features: what is left of it is what hashing costs."""

    map_at_k: float
    interval: Interval


class Health(Result):
    """The database's codes at one length."""

    bits: int
    distinct_share: float
    """Distinct codes over codes; estimated to 0.1 % above a million distinct ones."""
    least_balanced: float
    """Share of ones, of the bit that is farthest from one half."""
    mean_imbalance: float
    """Mean over bits of |share of ones - 1/2|."""
    constant_bits: int
    """Bits that are the same in every code."""


class Margin(Result):
    """The mAP of one method minus another's over the same queries, with a paired bootstrap interval."""

    bits: int
    difference: float
    interval: Interval


class TableRecord(Result):
    """Which table took part, by content."""

    role: Role
    digest: str
    dataset_digest: str
    rows: int


class ComparedEncoder(Result):
    """Another encoder, whose codes of the same images were evaluated beside the main one's."""

    name: str
    """The `method` of its series; with the logits of its queries: `NAME, asymmetric`."""
    encoder_digest: str
    tables: tuple[TableRecord, ...]
    margins: tuple[Margin, ...]
    """The main encoder's mAP minus this one's, per length that both have."""
    margins_over_itq: tuple[Margin, ...]
    """This one's mAP minus that of ITQ on the main tables' features; empty without baselines."""
    beats_itq: bool | None
    verdict: str
    """One sentence on `beats_itq`, empty without baselines."""

    def margin(self, bits: int) -> Margin | None:
        """The main encoder's margin at a length, None where not both have it."""
        return next((one for one in self.margins if one.bits == bits), None)


class Evaluation(Result):
    """Everything that an evaluation found."""

    format: Literal["cibhash-metrics-1"] = "cibhash-metrics-1"
    title: str
    k: int
    k_asked: int
    """Larger than `k` where the database has fewer items."""
    queries: int
    database: int
    name: str
    """What the encoder is called in tables and plots; the `method` of its series is `cibhash`."""
    encoder_digest: str
    tables: tuple[TableRecord, ...]
    seed: int
    bootstrap_resamples: int
    series: tuple[SeriesMetrics, ...]
    float_cosine: FloatMetrics | None
    health: tuple[Health, ...]
    margins: tuple[Margin, ...]
    """Against ITQ, per length; empty without baselines."""
    beats_itq: bool | None
    """Whether the mAP is above the baselines' at every length compared."""
    verdict: str
    """One sentence on `beats_itq`, empty without baselines."""
    compared: tuple[ComparedEncoder, ...]
    """Other encoders beside this one."""
    notes: tuple[str, ...]
    """What a reader of the numbers should know of this run."""
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """The bytes of `metrics.json`."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, ours first."""
        return tuple(dict.fromkeys(one.method for one in self.series))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Code lengths, ascending."""
        return tuple(sorted({one.bits for one in self.series}))

    @property
    def verdicts(self) -> tuple[tuple[bool | None, str], ...]:
        """`beats_itq` and `verdict` of every encoder that has one, the main one first."""
        found = [(self.beats_itq, self.verdict), *((one.beats_itq, one.verdict) for one in self.compared)]
        return tuple((beats_itq, sentence) for beats_itq, sentence in found if sentence)

    @property
    def is_asymmetric(self) -> bool:
        """Whether there are series with weighted distances, from the logits of queries."""
        return any(one.empty_ball_share is None for one in self.series)

    def find(self, method: str, bits: int) -> SeriesMetrics | None:
        """The metrics of one series, None where it was not evaluated."""
        return next((one for one in self.series if (one.method, one.bits) == (method, bits)), None)
