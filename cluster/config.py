"""What a person writes to run a job: one frozen model per job, unknown fields refused.

Knows nothing of the command line; `jobs.config_loader` fills these from a YAML recipe and overrides. No field reads the
environment. Batch sizes are global. Locations are plain paths or `s3://bucket/prefix`.
"""

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from cibhash.specs import BackboneSpec, ViewSpec
from cluster.evaluation.methods import OUR_NAME, check_names


def _split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


def _ascending(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(lengths))


def _check_lengths(lengths: tuple[int, ...]) -> None:
    for bits in lengths:
        if bits % 8 or not 8 <= bits <= 512:
            raise ValueError(f"{bits} bits: a code length is a multiple of 8 from 8 to 512")
    if len(set(lengths)) != len(lengths):
        raise ValueError(f"{','.join(map(str, lengths))}: a code length is named twice")


_STREAMS = 8
CodeLengths = Annotated[tuple[int, ...], BeforeValidator(_split_list), AfterValidator(_ascending)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split_list)]
WholeNumbers = Annotated[tuple[int, ...], BeforeValidator(_split_list)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of everything in a config: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RayConfig(Section):
    """Where Ray runs."""

    address: str = ""
    """Address of a running cluster. Empty: the cluster that `ray job submit` runs this in, else a private local Ray
    that ends with the command."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of the private local Ray; default: the real ones, at least 8."""


class JobConfig(Section):
    """Base of the job configs."""

    ray: RayConfig = RayConfig()
    """Where Ray runs."""
    dry_run: bool = False
    """Print the resolved plan and touch nothing."""


class PackConfig(JobConfig):
    """Pack images into tar shards with a manifest, one dataset per split at OUTPUT/<split>."""

    source: str
    """A folder of class folders, a CSV, Parquet or JSONL list (path, optional key, labels, split), `digits`, or
    `cifar10` (with --data)."""
    output: str
    """Where the datasets go: OUTPUT/<split>/dataset.json and its shards."""
    data: str = ""
    """Folder of the raw files of a named benchmark (cifar10: the folder of its tar shards)."""
    name: str = ""
    """Name of the dataset; default: the source's."""
    splits: str = ""
    """Seeded split of a source that has none, as shares: `query=0.1,database=0.9`. Empty: one split, `all`."""
    samples_per_shard: PositiveInt = 5000
    """Images per tar shard."""
    seed: Seed = 0
    """Seed of the split."""


class MonitorConfig(Section):
    """What is watched on images that are not trained on."""

    every_steps: PositiveInt = 100
    """Steps between two looks at the held-out images; every checkpoint is looked at too."""
    images: NonNegativeInt = 500
    """Images held out, at most a tenth of the training images; under 20 there is no monitor. 0: none."""
    dataset: str = ""
    """A dataset to take them from instead, so that all training images are trained on."""
    on_collapse: Literal["stop", "warn"] = "stop"
    """When the codes collapse: stop with exit code 5, or go on with a warning."""


class TrainConfig(JobConfig):
    """Train one hash encoder without labels and write it to OUTPUT.

    Packaged recipes by name: `paper` (the default settings), `neighbour` (ours: better codes from a frozen backbone),
    `parity` (the released code's choices).
    """

    dataset: str
    """The training dataset (a directory with dataset.json)."""
    output: str
    """Where the encoder directory goes, with checkpoints, metrics.jsonl and TensorBoard files below it."""
    bits: CodeLengths = (64,)
    """Code lengths, trained together as prefixes of the longest: 16,32,64. One length is the paper's plain code."""
    backbone: BackboneSpec = BackboneSpec()
    """What turns an image into features."""
    hidden: PositiveInt = 1024
    """Width of the head's hidden layer."""
    rotation: NonNegativeInt = 0
    """Principal components of the training images' features that the head is given; 0: the features as they are
    (paper). Needs num_cached_views."""
    views: ViewSpec = ViewSpec()
    """The random augmentation that makes a view."""
    num_cached_views: NonNegativeInt = 0
    """0: fresh views every epoch. V: compute the frozen backbone's features of V views per image once, and draw the two
    views of a step among them."""
    view_cache: str = ""
    """Where cached views go; runs with the same images, backbone and views share them. Default: OUTPUT/views."""
    view_seed: Seed = 0
    """Of the cached views, so that runs with other seeds can share them."""
    neighbors: NonNegativeInt = 0
    """0: both views are of one image (paper). K: with neighbor_probability the second view is of one of the image's K
    nearest training images by float features. Needs num_cached_views."""
    neighbor_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How often the second view is a neighbor's, where neighbors is above 0."""
    epochs: PositiveInt = 60
    """Passes over the training images."""
    batch_size: PositiveInt = 64
    """Images per step over all workers; every image's negatives are the other 2 * batch_size - 2 views."""
    drop_last: bool = True
    """Leave what does not fill a batch for the next epoch's order; false (released code) makes it a smaller batch and
    needs num_workers 1."""
    learning_rate: PositiveFinite = 0.001
    """Adam's step size, for the global batch."""
    backbone_learning_rate: PositiveFinite = 0.0001
    """Adam's step size of the backbone's layers, where backbone.train_from says that some learn."""
    weight_average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a running average of the weights, .998 for instance, which is what is encoded with. 0: the
    weights as they are (paper)."""
    temperature: PositiveFinite = 0.3
    """Of the contrastive loss."""
    beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.001
    """Weight of the information bottleneck; 0 is the ablation without it."""
    code_sampling: Literal["threshold", "bernoulli", "relaxed"] = "threshold"
    """Codes in training: thresholded (released code), sampled (paper), or relaxed: no codes but 2p - 1, thresholded
    only at test (ablation)."""
    kl_stopgrad: bool = True
    """The bottleneck gives no gradient to its second argument (released code)."""
    negatives: Literal["global", "local"] = "global"
    """Negatives of an image: all workers' images of the step, or those of its own worker."""
    seed: Seed = 0
    """Of initial weights, order and views."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone in training; the head and the loss are always float32."""
    compiled: bool = False
    """Let torch compile a frozen backbone: minutes at the start, then several times as fast. On a CPU it needs a C++
    compiler."""
    num_workers: PositiveInt = 1
    """DDP workers."""
    num_streams: PositiveInt | None = None
    """Parts that every epoch's order is dealt to; a multiple of num_workers that divides batch_size. Runs with the same
    num_streams see the same global batches whatever num_workers is. Default: 8 where that fits, else num_workers."""
    use_gpu: bool = False
    """One GPU per worker."""
    threads_per_worker: PositiveInt = 2
    """CPU threads of each worker's tensor operations."""
    loaders_per_worker: NonNegativeInt = 2
    """Processes of each worker that decode and augment, where views are not cached; at most one per stream. 0: the
    worker itself."""
    checkpoint_every: PositiveInt = 5
    """Epochs between checkpoints."""
    checkpoint_every_steps: NonNegativeInt = 0
    """Steps between further checkpoints within an epoch; 0: none."""
    selection: Literal["sep10", "nt_xent", "oracle", "last"] = "sep10"
    """Which checkpoint becomes the encoder: by a label-free score on the held-out images (how far the codes of an
    image's float neighbors stand out, or the contrastive loss), by their labels, or the last one. Without held-out
    images it is the last."""
    strict: bool = False
    """Stop at a damaged checkpoint instead of falling back to the one before."""
    monitor: MonitorConfig = MonitorConfig()
    """What is watched on images that are not trained on."""
    metrics_every: PositiveInt = 20
    """Steps between rows of metrics.jsonl and points of the TensorBoard curves."""
    max_failures: NonNegativeInt = 2
    """Lost workers that are answered with a restart from the last checkpoint."""
    collective_timeout_s: PositiveFinite = 600.0
    """Time that workers wait for each other in a step before the run ends, naming the one that hangs."""
    start_timeout_s: PositiveFinite = 1800.0
    """Time to wait for the workers' resources."""

    @property
    def streams(self) -> int:
        """Parts that every epoch's order is dealt to."""
        if self.num_streams is not None:
            return self.num_streams
        fitting = math.gcd(_STREAMS, self.batch_size)
        return fitting if fitting % self.num_workers == 0 else self.num_workers

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        _check_lengths(self.bits)
        if not self.bits:
            raise ValueError("bits: at least one code length is needed")
        if self.streams % self.num_workers:
            raise ValueError(f"num_streams {self.streams} is not a multiple of num_workers {self.num_workers}")
        if self.batch_size % self.streams:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_streams {self.streams}")
        if self.batch_size < 2:
            raise ValueError("batch_size 1 leaves no negatives: at least 2 images are needed")
        if self.negatives == "local" and self.batch_size // self.num_workers < 2:
            raise ValueError("negatives local: at least 2 images per worker are needed")
        if not self.drop_last and self.num_workers > 1:
            raise ValueError(f"drop_last false needs num_workers 1, not {self.num_workers}: batches must be equal")
        if self.num_cached_views and self.backbone.trainable:
            raise ValueError("num_cached_views needs a frozen backbone: leave backbone.train_from empty")
        if self.num_cached_views and self.backbone.dropout:
            raise ValueError("num_cached_views makes views without dropout: set backbone.dropout to false")
        if self.num_cached_views == 1:
            raise ValueError("num_cached_views 1 leaves no second view: at least 2, or 0 for fresh views")
        for name in ("rotation", "neighbors"):
            if getattr(self, name) and not self.num_cached_views:
                raise ValueError(
                    f"{name} {getattr(self, name)} needs cached views: set num_cached_views, 8 for instance"
                )
        if self.compiled and self.backbone.trainable:
            raise ValueError("compiled needs a frozen backbone: leave backbone.train_from empty")
        return self


class SweepGrid(Section):
    """Values to combine; a field without values stays at the run's own."""

    temperature: Numbers = (0.2, 0.3, 0.4)
    """Of the contrastive loss."""
    beta: Numbers = (0.0001, 0.001, 0.005)
    """Weight of the information bottleneck."""
    learning_rate: Numbers = ()
    """Adam's step size."""
    batch_size: WholeNumbers = ()
    """Images per step."""
    epochs: WholeNumbers = ()
    """Passes over the training images."""
    seed: WholeNumbers = ()
    """Of initial weights, order and views: how much is noise."""


class SweepConfig(TrainConfig):
    """Train many heads on the same cached views (Ray Tune) and compare them by label-free scores.

    Takes the recipes and options of `train`, with cached views; the trials' encoders lie at OUTPUT/trials.
    """

    num_cached_views: NonNegativeInt = 8
    """Views per image whose features are computed once, for all trials."""
    grid: SweepGrid = SweepGrid()
    """Values to combine."""
    max_trials: NonNegativeInt = 0
    """Run a seeded sample of so many combinations; 0: all."""
    concurrent: PositiveInt = 2
    """Trials at a time."""

    @model_validator(mode="after")
    def _check_sweep(self) -> "SweepConfig":
        if not self.num_cached_views:
            raise ValueError("num_cached_views 0: a sweep trains on cached views, 8 for instance")
        if self.grid.seed and self.backbone.weights == "none":
            raise ValueError("grid.seed needs a pretrained backbone: one of random weights would change with the seed")
        if self.num_workers > 1:
            raise ValueError(f"num_workers {self.num_workers}: a trial is one process; set concurrent instead")
        return self


class EncodeConfig(JobConfig):
    """Encode every image of a dataset into a code table at OUTPUT."""

    encoder: str
    """The encoder directory."""
    dataset: str
    """The dataset directory."""
    output: str
    """Where the code table goes; a rerun continues where an earlier one stopped."""
    num_workers: PositiveInt = 1
    """Encoding actors."""
    threads_per_worker: PositiveInt = 2
    """CPU threads of each actor."""
    use_gpu: bool = False
    """One GPU per actor."""
    batch_size: PositiveInt = 128
    """Images per forward pass."""
    features: bool = False
    """Also write the backbone's float features (for baselines and the float upper bound)."""
    logits: bool = False
    """Also write the logits, for asymmetric query distance."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of images that may be refused (10 images always may); above it the job fails."""


class IndexConfig(JobConfig):
    """Build a new version of an index from code tables and switch OUTPUT/CURRENT to it."""

    codes: str
    """A code table directory; several: separated by commas (their ids must not overlap)."""
    output: str
    """The index directory."""
    kind: Literal["flat"] = "flat"
    """`flat`: exact search."""
    shards: PositiveInt = 1
    """Index shards, contiguous ranges of ids."""


class ServeConfig(JobConfig):
    """Serve an index and its search page over HTTP until interrupted."""

    index: str
    """The index directory."""
    encoder: str = ""
    """The encoder directory, for image queries; default: the one the index was built with."""
    host: str = "127.0.0.1"
    """Address to bind. Beyond loopback a token file is required."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the service."""
    replicas: PositiveInt = 1
    """Replicas of every shard."""
    token_file: str = ""
    """File with the bearer tokens that may query, one per line."""
    shard_deadline_s: PositiveFinite = 5.0
    """Time a shard has to answer."""
    max_k: PositiveInt = 10_000
    """Largest k of a request."""
    max_queries: PositiveInt = 10_000
    """Largest number of queries of a request."""
    max_body_bytes: PositiveInt = 32 * 2**20
    """Largest body of a request."""


class SearchConfig(JobConfig):
    """Find the neighbors of image files, keys (key:NAME), ids (id:NUMBER) or codes (code:HEX)."""

    query: tuple[str, ...] = ()
    """Image files, or key:NAME, id:NUMBER, code:HEX."""
    index: str = ""
    """The index directory (exactly one of index and url)."""
    url: str = ""
    """Address of a running service (exactly one of index and url)."""
    encoder: str = ""
    """The encoder directory, for image files; default: the one the index was built with."""
    token_file: str = ""
    """File with the service's bearer token."""
    k: PositiveInt | None = None
    """Neighbors per query; default 10."""
    radius: NonNegativeInt | None = None
    """Instead of k: all neighbors within this Hamming distance (inclusive)."""

    @model_validator(mode="after")
    def _check(self) -> "SearchConfig":
        if not self.query:
            raise ValueError("query: at least one image file, key:NAME, id:NUMBER or code:HEX is needed")
        if bool(self.index) == bool(self.url):
            raise ValueError("exactly one of index and url is needed")
        if self.k is not None and self.radius is not None:
            raise ValueError("k and radius exclude each other")
        return self


class RetrieveConfig(JobConfig):
    """Find the neighbors of every row of a code table, Parquet in, Parquet out, without the service."""

    index: str
    """The index directory."""
    queries: str
    """The code table of the queries."""
    output: str
    """Where the neighbor table goes; a rerun continues where an earlier one stopped."""
    k: PositiveInt = 100
    """Neighbors per query."""


class ComparedTables(NamedTuple):
    """The code tables of an encoder to compare with, and what it is called."""

    name: str
    queries: str
    database: str


def _compared_tables(text: str) -> ComparedTables:
    """Splits `NAME=QUERIES,DATABASE`."""
    name, _, tables = text.partition("=")
    parts = [part.strip() for part in (name, *tables.split(","))]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"compare {text!r}: expected NAME=QUERIES,DATABASE, a name and two code tables")
    return ComparedTables(*parts)


class EvaluateConfig(JobConfig):
    """Evaluate retrieval of one code table against another, exactly, and write the report."""

    queries: str
    """Code table of the queries, with labels. With logits too (encoded with --logits), their asymmetric distance is
    evaluated beside the Hamming distance."""
    database: str
    """Code table of the database, with labels."""
    output: str
    """Where metrics.json, metrics.md and report.html go."""
    k: PositiveInt = 1000
    """Ranks of mAP@k, precision@k and recall@k."""
    bits: CodeLengths = ()
    """Prefix lengths to evaluate; default: those the encoder was trained for."""
    baseline_fit: str = ""
    """Code table with features to fit random hyperplanes and PCA-ITQ on; they are then evaluated on the features of
    queries and database (all three encoded with --features)."""
    seed: Seed = 0
    """Seed of the baselines."""
    example_queries: NonNegativeInt = 8
    """Query images shown with their neighbors in the report."""
    title: str = ""
    """Heading of the report; default: the dataset's name."""
    name: str = OUR_NAME
    """What tables and plots call the encoder of queries and database."""
    compare: tuple[str, ...] = ()
    """Other encoders to show beside it, each as NAME=QUERIES,DATABASE: its code tables of the same images. Lengths are
    compared that both were trained for, over the same queries."""

    @property
    def compared_tables(self) -> tuple[ComparedTables, ...]:
        """`compare`, taken apart."""
        return tuple(_compared_tables(text) for text in self.compare)

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        _check_lengths(self.bits)
        check_names(self.name, tuple(tables.name for tables in self.compared_tables))
        return self


class DemoConfig(JobConfig):
    """Run the whole path on 1,797 handwritten digits: pack, train, encode, index, evaluate, serve."""

    output: str = "demo"
    """Where everything goes."""
    serve: bool = True
    """Serve the search page at the end, until interrupted."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the search page."""
    seed: Seed = 0
    """Of split, weights and views."""
