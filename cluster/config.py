"""What a person writes to run a job: one frozen model per job, unknown fields refused.

Knows nothing of the command line; `jobs.config_loader` fills these from a YAML recipe and overrides. No field reads the
environment. Batch sizes are global. Locations are plain paths or `s3://bucket/prefix`.
"""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
)


def _split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


def _ascending(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(lengths))


def check_lengths(lengths: tuple[int, ...]) -> None:
    """Refuses a code length that cannot be, or comes twice."""
    for bits in lengths:
        if bits % 8 or not 8 <= bits <= 512:
            raise ValueError(f"{bits} bits: a code length is a multiple of 8 from 8 to 512")
    if len(set(lengths)) != len(lengths):
        raise ValueError(f"{','.join(map(str, lengths))}: a code length is named twice")


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


class EncodeConfig(JobConfig):
    """Encode every image of a dataset into a code table at OUTPUT."""

    encoder: str
    """The encoder directory."""
    dataset: str
    """The dataset directory."""
    output: str
    """Where the code table goes; a rerun continues where an earlier one stopped. Over a dataset that grew or changed, a
    new version of the table keeps what is unchanged."""
    moved: bool = False
    """Continue a table whose dataset was elsewhere before."""
    num_workers: PositiveInt = 1
    """Encoding actors."""
    threads_per_worker: PositiveInt = 2
    """CPU threads of each actor."""
    use_gpu: bool = False
    """One GPU per actor."""
    decoders: NonNegativeInt | None = None
    """CPU workers that decode for each actor, anywhere in the cluster; 0: the actor's own threads. Default: 8 for an
    actor with a GPU, else 0."""
    batch_size: PositiveInt | None = None
    """Images per forward pass; halved where memory does not suffice. Default: 1,024 on a GPU, 128 on CPUs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: faster where the hardware has it; some bits near the threshold differ."""
    compiled: bool = False
    """Have torch compile the backbone: a minute at the start, then faster."""
    features: bool = False
    """Also write the backbone's float features (for baselines and the float upper bound)."""
    logits: bool = False
    """Also write the logits, for asymmetric query distance."""
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Share of images that may be refused (10 images always may); above it the job fails."""


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
