"""What an evaluation found, as `metrics.json` holds it.

Knows nothing of how it is computed or shown. The same tables, lengths, k and seed give the same JSON, wherever the
tables lie and however the work was split.
"""

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.evaluation.plan import Role
from cluster.reproduction.published import Published

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
    map_all: float
    """Over the whole database (mAP@ALL)."""
    map_stored_order: float | None
    """mAP@k with equal distances in the order of ids, as sorting a stored database stably gives; None: not asked for,
    or distances are weighted."""
    float_agreement: float | None
    """Share of the 100 (or k, if less) most similar by float features that are as many nearest codes, equal distances
    in the order of ids; None: the stored order was not asked for, there are no features, or distances are weighted."""
    ndcg_at_k: float
    """A relevant item gains 1, whatever number of labels it shares."""
    precision_at_k: float
    recall_at_k: float
    intervals: dict[str, Interval]
    """Of `map_all`, `map_at_k_min_kr`, `map_at_k_r`, `ndcg_at_k`, `precision_at_k` and `recall_at_k`, by name."""
    ramap: float | None
    """Mean over the radii 0 to bits of the precision within the radius; None where distances are weighted."""
    empty_ball_share: float | None
    """Queries without any item within radius 2; None where distances are weighted, and no radius means the same to two
    queries."""
    median_tie_block: float
    """Items that share the distance at which rank k falls, median over queries."""
    precision_by_radius: tuple[float, ...]
    """Radius 0 to bits; empty where distances are weighted."""
    recall_by_radius: tuple[float, ...]
    map_by_radius: tuple[float, ...]
    """mAP of the items within each radius alone, an empty ball counting 0."""
    empty_balls_by_radius: tuple[float, ...]
    """Share of the queries without any item within each radius."""
    ranks: tuple[int, ...]
    precision_by_rank: tuple[float, ...]
    recall_by_rank: tuple[float, ...]
    map_by_class: tuple[float, ...]
    """`map_at_k` over the queries of each class, in the order of `Evaluation.classes`."""
    precision_by_class: tuple[float, ...]
    """`precision_at_k` likewise."""


class QueryClass(Result):
    """A label of queries; a query with several counts for each."""

    label: int
    name: str
    """As `classes.json` beside the dataset has it; empty where there is none."""
    queries: int


class QueryTable(Result):
    """The table of every query's metrics, beside `metrics.json`."""

    path: str
    bytes: int
    sha256: str
    rows: int


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
    mean_entropy: float
    """Mean over bits of the entropy of the bit, in bits."""
    mean_mutual_information: float
    """Over all pairs of different bits, in bits."""
    max_mutual_information: float
    shared_code_share: float
    """Images that share their code with another one, over images."""
    largest_tie_block: int
    """Images that share the most frequent code; of a sample of the codes where `tie_blocks_sampled`."""
    tie_blocks_by_size: tuple[float, ...]
    """Shares of the images whose code stands for 1, 2 to 3, 4 to 7, ... images."""
    tie_blocks_sampled: bool
    """Tie blocks are those of a random million of the distinct codes."""
    collision_pairs: int
    """Pairs of labeled images with equal codes that were looked at."""
    collision_share: float
    """Of them, pairs that share no label; 0 without any pair."""
    collisions_sampled: bool
    """The pairs are those of a random choice of codes with about 65,000 images."""


class BitHealth(Result):
    """Every bit of the database's codes, at the longest length."""

    bits: int
    ones: tuple[float, ...]
    """Share of ones of each bit."""
    mutual_information: tuple[float, ...]
    """In bits, of the pairs (0, 1), (0, 2), ..., (1, 2), ..."""


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
    dataset: str
    """Name of the dataset; empty where its manifest is no longer there, or another one by now."""
    split: str
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


class NamedProtocol(Result):
    """A protocol of the literature, and what was published under it."""

    name: str
    title: str
    about: str
    k: int
    published: tuple[Published, ...]
    deviations: tuple[str, ...] = ()
    """In what the evaluation is another one, so that the numbers do not compare."""


class IndexRecall(Result):
    """How much of the exact answer an index over the database finds."""

    version: str
    kind: str
    """With its parameters that were asked for."""
    bits: int
    shards: int
    k: int
    num_queries: int
    recall: float
    """Share of the k nearest that it finds, mean over queries; one as close as the k-th nearest counts."""

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"The index {self.version} (kind {self.kind}, {self.bits} bits) finds {self.recall:.2%} of the {self.k:,} "
            f"nearest, over {self.num_queries:,} queries."
        )


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
    classes: tuple[QueryClass, ...]
    """Of the queries; empty with more than a thousand."""
    query_table: QueryTable | None
    """Metrics of every query."""
    series: tuple[SeriesMetrics, ...]
    float_cosine: FloatMetrics | None
    health: tuple[Health, ...]
    bit_health: BitHealth
    margins: tuple[Margin, ...]
    """Against ITQ, per length; empty without baselines."""
    beats_itq: bool | None
    """Whether the mAP is above the baselines' at every length compared."""
    verdict: str
    """One sentence on `beats_itq`, empty without baselines."""
    compared: tuple[ComparedEncoder, ...]
    """Other encoders beside this one."""
    index_recall: IndexRecall | None = None
    """Of the index that was named."""
    notes: tuple[str, ...]
    """What a reader of the numbers should know of this run."""
    versions: dict[str, str]
    protocol: NamedProtocol | None = None
    """Whose published numbers are shown beside these."""

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
