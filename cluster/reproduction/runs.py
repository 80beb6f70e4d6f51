"""One run of a row: train at one seed and some lengths, encode, evaluate; and the record that makes it complete.

Knows nothing of other rows and of tables. It calls what the jobs call. A run lies in a folder named after everything
that decides its result, so one that was interrupted goes on and one of other settings has another folder; `run.json`
is written last.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cibhash.errors import ConfigError, NotFound
from cluster import storage
from cluster.config import EncodeConfig
from cluster.encoding.encode import encode
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.query_table import QUERIES_FILE
from cluster.evaluation_config import EvaluateConfig
from cluster.reproduction.at_hand import Data
from cluster.reproduction.paper_table import Row
from cluster.reproduction.published import Protocol
from cluster.reproduction_config import ReproduceConfig
from cluster.training.trainer import deciding_settings, train
from cluster.training_config import TrainConfig

RECORD = "run.json"
_DIGITS = 12


class RunRecord(BaseModel):
    """`run.json`: what a run found; its numbers are in the report's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["cibhash-run-1"] = "cibhash-run-1"
    digest: str
    """Of everything that decides the result."""
    encoder_digest: str
    split: str
    seconds: float
    """Of the part that was not there before."""


@dataclass(frozen=True)
class Run:
    """What is to be run, and where."""

    row: Row
    bits: tuple[int, ...]
    seed: int
    training: TrainConfig
    data: Data
    k: int
    baselines: bool
    """Whether they are evaluated too."""
    digest: str
    output: str

    @property
    def label(self) -> str:
        """What log lines and messages call it."""
        return f"{self.row.name}, {', '.join(map(str, self.bits))} bits, seed {self.seed}"

    @property
    def report(self) -> str:
        """Where its metrics are."""
        return storage.join(self.output, "report")


def plan_runs(
    config: ReproduceConfig, row: Row, protocol: Protocol, recipe: TrainConfig, data: Data, weights: str
) -> tuple[Run, ...]:
    """The runs of a row: one for every seed, and for every length unless the code is nested.

    Args:
        config: Of the job.
        row: To be run.
        protocol: Its protocol.
        recipe: What its recipes say; datasets, output, lengths and seed are set here.
        data: Complete.
        weights: Of the backbone, as in `BackboneSpec.weights`.

    Raises:
        ConfigError: settings that do not go together.
    """
    lengths: list[tuple[int, ...]] = [(bits,) for bits in row.bits if not config.bits or bits in config.bits]
    if row.training == "nested":
        lengths = [row.bits]
    seeds = config.seeds or row.seeds
    runs = []
    for bits in lengths:
        for seed in seeds:
            training = _training(config, row, recipe, data, weights, bits, seed)
            baselines = row.baselines and seed == seeds[0]  # they do not depend on how a head was trained
            runs.append(_located(config, Run(row, bits, seed, training, data, protocol.k, baselines, "", "")))
    return tuple(runs)


def execute(run: Run) -> RunRecord:
    """Trains, encodes and evaluates, going on where an earlier call stopped, inside a Ray session.

    Raises:
        CIBHashError: as the jobs raise it.
    """
    began = time.monotonic()
    trained = train(run.training)
    tables = {}
    for split in ("query", "database", *(["train"] if run.baselines else [])):
        tables[split] = storage.join(run.output, "codes", split)
        encode(
            EncodeConfig(
                encoder=trained.encoder_uri,
                dataset=run.data.uri(split),
                output=tables[split],
                features=run.baselines,
                num_workers=run.training.num_workers,
                threads_per_worker=run.training.threads_per_worker,
                use_gpu=run.training.use_gpu,
                precision=run.training.precision,
                compiled=run.training.compiled,
                moved=True,
            )
        )
    evaluate(
        EvaluateConfig(
            queries=tables["query"],
            database=tables["database"],
            output=run.report,
            k=run.k,
            bits=run.bits,
            baseline_fit=tables.get("train", ""),
            title=run.label,
        )
    )
    record = RunRecord(
        digest=run.digest,
        encoder_digest=trained.encoder_digest,
        split=run.data.split,
        seconds=round(time.monotonic() - began, 1),
    )
    content = json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
    storage.write_bytes(storage.join(run.output, RECORD), content.encode())
    return record


def find_record(run: Run) -> RunRecord | None:
    """The record of a run that is complete, None where there is none, or one of other settings."""
    try:
        record = RunRecord.model_validate_json(storage.read_bytes(storage.join(run.output, RECORD)))
    except (NotFound, ValidationError):
        return None
    files = (storage.join(run.report, name) for name in ("metrics.json", QUERIES_FILE))
    return record if record.digest == run.digest and all(map(storage.exists, files)) else None


def _training(
    config: ReproduceConfig, row: Row, recipe: TrainConfig, data: Data, weights: str, bits: tuple[int, ...], seed: int
) -> TrainConfig:
    """What the recipe says, for this run. Where it goes with one worker only, it gets one."""
    frozen = not recipe.backbone.trainable
    settings = {name: getattr(recipe, name) for name in TrainConfig.model_fields}
    settings |= row.at.get(bits[0], {}) if row.training == "per_length" else {}
    settings |= {"epochs": config.epochs} if config.epochs else {}
    monitor = recipe.monitor
    if row.monitor_split:
        monitor = monitor.model_copy(update={"dataset": data.uri(row.monitor_split)})
    fields = {
        **settings,
        "ray": config.ray,
        "dataset": data.uri("train"),
        "output": storage.join(storage.absolute(config.output or "."), "encoder"),
        "bits": bits,
        "seed": seed,
        "backbone": dataclasses.replace(recipe.backbone, weights=weights),
        "monitor": monitor,
        "view_cache": storage.absolute(config.view_cache or storage.join(config.output or ".", "views")),
        "num_workers": config.num_workers if recipe.drop_last else 1,
        "threads_per_worker": config.threads_per_worker,
        "loaders_per_worker": config.loaders_per_worker,
        "use_gpu": config.use_gpu,
        "precision": config.precision,
        "compiled": config.compiled and frozen,
    }
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"row {row.name}: {where + ': ' if where else ''}{message}") from None


def _located(config: ReproduceConfig, run: Run) -> Run:
    """The run with its digest and its folder."""
    settings = deciding_settings(run.training, run.data.datasets["train"])
    digests = {split: run.data.datasets[split].digest for split in run.row.splits}
    settings["monitor"]["dataset"] = digests.get(run.row.monitor_split, "")
    content = {"training": settings, "datasets": digests, "k": run.k, "baselines": run.baselines, "format": "run-1"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    name = f"{'-'.join(map(str, run.bits))}-seed{run.seed}-{digest[:_DIGITS]}"
    output = storage.join(storage.absolute(config.output or "."), "runs", run.row.name, name)
    training = run.training.model_copy(update={"output": storage.join(output, "encoder")})
    return dataclasses.replace(run, training=training, digest=digest, output=output)
