"""The sweep job: many heads from the same cached views, as trials of Ray Tune, compared by label-free scores.

Knows nothing of the loop. Views, rotation and neighbors are made once; a trial is one process and takes a minute or so.
A sweep that was killed continues: trials that have their record are not run again.
"""

import contextlib
import io
import itertools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from cibhash.encoder import ENCODER_FILE
from cibhash.errors import CIBHashError, ConfigError, NotFound
from cibhash.weight_average import take_average
from cluster import storage
from cluster.datasets import open_dataset
from cluster.encoders import encoder_info, publish_encoder
from cluster.failures import described, raise_failure
from cluster.interruptible import interruptible
from cluster.runtime import ray_session, require_resources
from cluster.telemetry import log, progress, show
from cluster.training.assembly import assemble, checkpoint_store
from cluster.training.curves import write_curves
from cluster.training.metrics_log import MetricsLog, read_rows
from cluster.training.preparation import prepare
from cluster.training.run import Surroundings, checkpointed_part, train_run
from cluster.training.selected import choice
from cluster.training.sweep_report import Setting, Trial, markdown, picture, terminal_table
from cluster.training_config import SweepConfig, TrainConfig

_RECORD, _TABLE, _PICTURE = "trial.json", "sweep.md", "sweep.svg"
_SCORES = ("sep10", "nt_xent", "oracle", "bit_entropy", "seconds")


@dataclass(frozen=True)
class SweepResult:
    """What the sweep job found."""

    output: str
    trials: int
    failed: int
    best: Setting
    best_encoder_uri: str
    best_encoder_digest: str
    table: tuple[Trial, ...]
    """Best first."""


def sweep(config: SweepConfig) -> SweepResult:
    """Runs every setting of the grid and writes `sweep.md` and `sweep.svg` beside the trials' encoders.

    Raises:
        ConfigError: nothing to compare: the grid has one setting.
        CIBHashError: every trial failed; of the first one's class.
    """
    settings = grid_settings(config)
    base = _base(config)
    dataset = open_dataset(base.dataset)
    for setting in settings:
        _trial_config(base, setting)  # whatever cannot work is refused before any work
    if config.dry_run:
        return SweepResult(base.output, len(settings), 0, settings[0], "", "", ())
    with ray_session(config.ray):
        require_resources(config.ray, "concurrent", config.concurrent, cpus=1.0, gpus=float(config.use_gpu))
        prepare(base, dataset)
        _run_trials(base, settings, config.concurrent)
    trials = sorted((_read(_trial_config(base, setting)) for setting in settings), key=_rank)
    done = [trial for trial in trials if not trial.failure]
    if not done:
        name, _, message = trials[0].failure.partition(" ")
        raise_failure(f"{name} {base.output}: all {len(trials)} trials failed, the first: {message}")
    text = markdown(trials, list(settings[0]))
    storage.write_bytes(storage.join(base.output, _TABLE), text.encode())
    storage.write_bytes(storage.join(base.output, _PICTURE), picture(done, list(settings[0])))
    show(terminal_table(trials, list(settings[0])))
    best = done[0]
    return SweepResult(
        base.output,
        len(trials),
        len(trials) - len(done),
        best.setting,
        best.encoder_uri,
        best.encoder_digest,
        tuple(trials),
    )


def grid_settings(config: SweepConfig) -> list[Setting]:
    """All combinations of the grid, or a seeded sample of `max_trials` of them.

    Raises:
        ConfigError: there is only one.
    """
    axes = {name: values for name, values in config.grid if values}
    settings: list[Setting] = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(settings) < 2:
        raise ConfigError("the grid has one setting: name at least two values, --grid.temperature 0.2,0.3 for instance")
    if config.max_trials and len(settings) > config.max_trials:
        chosen = np.random.default_rng(config.seed).permutation(len(settings))[: config.max_trials]
        settings = [settings[index] for index in sorted(chosen)]
    return settings


def _base(config: SweepConfig) -> TrainConfig:
    """The settings that all trials share."""
    fields = {name: getattr(config, name) for name in TrainConfig.model_fields}
    output = storage.absolute(config.output)
    fields |= {"output": output, "dataset": storage.absolute(config.dataset), "num_workers": 1}
    fields["view_cache"] = storage.absolute(config.view_cache) if config.view_cache else storage.join(output, "views")
    return TrainConfig.model_validate(fields)


def _trial_config(base: TrainConfig, setting: Setting) -> TrainConfig:
    name = ",".join(f"{key}={value:g}" for key, value in setting.items())
    fields = {field: getattr(base, field) for field in TrainConfig.model_fields}
    return TrainConfig.model_validate({**fields, **setting, "output": storage.join(base.output, "trials", name)})


def _run_trials(base: TrainConfig, settings: Sequence[Setting], concurrent: int) -> None:
    """Runs what has no record yet."""
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    todo = [setting for setting in settings if not _is_done(_trial_config(base, setting))]
    if len(todo) < len(settings):
        log("sweep: continuing", trials_done=len(settings) - len(todo), trials=len(settings))
    if not todo:
        return
    with progress("sweep", len(todo), "trials") as line:
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"cpu": 1, "gpu": 1 if base.use_gpu else 0}),
            param_space={"base": base.model_dump(mode="json"), "setting": tune.grid_search([dict(s) for s in todo])},
            tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
            run_config=tune.RunConfig(
                name="tune", storage_path=base.output, verbose=0, callbacks=[_progress_callback(line)]
            ),
        )
        with contextlib.redirect_stdout(io.StringIO()):  # where Tune announces itself
            results = interruptible(tuner.fit)
    if results.errors:
        raise results.errors[0]


def _progress_callback(line: Any) -> Any:
    from ray import tune

    class Advance(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            line.advance()

    return Advance()


def _trial(space: dict[str, Any]) -> dict[str, Any]:
    """Trains one head in this process; what goes wrong with its setting is part of the result."""
    config = _trial_config(TrainConfig.model_validate(space["base"]), space["setting"])
    torch.set_num_threads(config.threads_per_worker)
    cv2.setNumThreads(1)
    device = torch.device("cuda" if config.use_gpu else "cpu")
    failure, metrics = "", MetricsLog(config.output)
    parts = assemble(config, rank=0, world_size=1, device=device)
    store = checkpoint_store(config)
    try:
        surroundings = Surroundings(device=device, emit=metrics.add)
        train_run(
            config,
            parts.encoder,
            parts.source,
            parts.share,
            store=store,
            monitor=parts.monitor,
            surroundings=surroundings,
        )
    except CIBHashError as error:
        failure = described(error)
    metrics.write()
    rows = read_rows(config.output)
    write_curves(config.output, rows)
    digest = ""
    scores: dict[str, float | None] = {"sep10": None, "nt_xent": None, "oracle": None}
    checkpointed = checkpointed_part(config, parts.encoder)
    best = None if failure else store.load_best(checkpointed)
    take_average(checkpointed)
    if best is not None:
        if not storage.exists(storage.join(config.output, ENCODER_FILE)):
            publish_encoder(parts.encoder.cpu().eval(), config.output)
        digest = encoder_info(config.output).digest
        found = choice(config.selection, best)
        scores = {"sep10": found.sep10, "nt_xent": found.nt_xent, "oracle": found.oracle}
    looks = [row for row in rows if row["kind"] == "look"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    record = {
        "setting": dict(space["setting"]),
        "encoder_uri": config.output,
        "encoder_digest": digest,
        **scores,
        "bit_entropy": looks[-1]["bit_entropy"] if looks else None,
        "seconds": round(sum(row["steps"] * config.batch_size / row["images_per_s"] for row in epochs), 1),
        "failure": failure,
    }
    storage.write_bytes(storage.join(config.output, _RECORD), (json.dumps(record, indent=1) + "\n").encode())
    return {name: record[name] if record[name] is not None else math.nan for name in _SCORES}


def _is_done(config: TrainConfig) -> bool:
    return storage.exists(storage.join(config.output, _RECORD))


def _read(config: TrainConfig) -> Trial:
    try:
        return Trial(**json.loads(storage.read_bytes(storage.join(config.output, _RECORD))))
    except NotFound:
        return Trial({}, config.output, "", None, None, None, None, 0.0, "DataError the trial did not end")


def _rank(trial: Trial) -> tuple[bool, float]:
    """Failed trials last, then by sep10, which compares across settings; the loss of another temperature does not."""
    return bool(trial.failure), -(trial.sep10 if trial.sep10 is not None else -math.inf)
