"""What a person writes to train: one encoder, or a sweep of many on the same cached views.

Knows nothing of the command line. Batch sizes and learning rates are global, whatever the number of workers.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cibhash.specs import BackboneSpec, ViewSpec
from cluster.config import CodeLengths, JobConfig, Numbers, PositiveFinite, Section, Seed, WholeNumbers, check_lengths

_STREAMS = 8


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
        check_lengths(self.bits)
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
