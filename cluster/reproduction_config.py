"""What a person writes to reproduce the paper's tables.

Knows nothing of the command line and of how rows are run.
"""

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from cluster.config import CodeLengths, JobConfig, WholeNumbers, check_lengths


class ReproduceConfig(JobConfig):
    """Run the rows of the paper's tables whose data and weights are at hand, and write the tables to OUTPUT.

    A row is a method on a dataset at several code lengths: it is trained by a packaged recipe, queries and database are
    encoded and evaluated, and its mAP stands beside the published one, with where that is from. What was run is kept:
    the same command goes on where an earlier one stopped. A row that fails does not stop the others; the exit code
    tells of it.

      cibhash reproduce --data DATA --weights WEIGHTS --list
      cibhash reproduce --data DATA --weights WEIGHTS --output OUTPUT --rows 'cifar10-mobilenetv2*'
    """

    data: str = ""
    """Folder with one packed benchmark per protocol, by its name: DATA/cifar10/{train,query,database}."""
    weights: str = ""
    """Weights of the backbones, where a recipe does not find its own: a safetensors file, or a folder of them. A file
    is taken by the name that the recipe has for it; in place of timm's hub, MODEL.safetensors, as
    vgg16.tv_in1k.safetensors."""
    output: str = ""
    """Where table.md and table.html go, and encoders, codes and reports of every run below runs/."""
    rows: str = ""
    """Rows to run, by name, with * and ?, separated by commas; default: all."""
    list: bool = False
    """Show the rows, and which of them have their data and weights, and run nothing."""
    table: str = ""
    """A table of your own (YAML) instead of the paper's."""
    bits: CodeLengths = ()
    """Code lengths to run, of rows with a model for every length; default: all of a row's."""
    seeds: WholeNumbers = ()
    """Seeds to run instead of a row's own."""
    epochs: PositiveInt | None = None
    """Epochs instead of the recipe's, to try things out: numbers are then not held against published ones."""
    offline: bool = False
    """Do not look for weights on timm's hub; what it has downloaded before is used."""
    view_cache: str = ""
    """Where cached views go, which all rows of a backbone share. Default: OUTPUT/views."""
    num_workers: PositiveInt = 1
    """Workers of training and encoding. A recipe that goes with one worker is trained by one."""
    threads_per_worker: PositiveInt = 2
    """CPU threads of each."""
    loaders_per_worker: NonNegativeInt = 2
    """Processes of each training worker that decode and augment, where views are not cached."""
    use_gpu: bool = False
    """One GPU per worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the backbone, in training and encoding."""
    compiled: bool = False
    """Let torch compile frozen backbones."""

    @model_validator(mode="before")
    @classmethod
    def _listing_touches_nothing(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("list") is True:
            return {**values, "dry_run": True}
        return values

    @model_validator(mode="after")
    def _check(self) -> "ReproduceConfig":
        check_lengths(self.bits)
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds {','.join(map(str, self.seeds))}: expected different numbers from 0 on")
        if not self.data:
            raise ValueError("data: the folder with the packed benchmarks is needed")
        if not self.output and not self.dry_run:
            raise ValueError("output: a folder is needed (unless --list)")
        return self
