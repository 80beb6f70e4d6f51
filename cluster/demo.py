"""The demo: the whole path on scikit-learn's handwritten digits, from pixels to a served search page.

Knows nothing that the jobs do not: it calls the same functions with the same configs, one after the other in one Ray
session, and times them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import storage
from cluster.config import DemoConfig, EncodeConfig
from cluster.encoding.encode import encode
from cluster.evaluation.evaluate import evaluate
from cluster.evaluation.result_tables import format_table
from cluster.evaluation_config import EvaluateConfig
from cluster.index.build import build_index
from cluster.index_config import IndexConfig
from cluster.packing.pack import pack
from cluster.packing_config import PackConfig
from cluster.runtime import ray_session
from cluster.service.app import check_endpoint, serve
from cluster.service_config import ServeConfig
from cluster.telemetry import log, show
from cluster.training.trainer import train
from cluster.training_config import TrainConfig

INDEX_SHARDS = 3


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and how long each stage took."""

    map_at_k: dict[str, float]
    baselines: dict[str, dict[str, float]]
    k: int
    report_uri: str
    index_uri: str
    encoder_digest: str
    stage_seconds: dict[str, float]


@dataclass
class _Clock:
    """Seconds per stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Announces a stage and keeps its seconds."""
        log(f"demo: {stage}")
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 1)


def run_demo(config: DemoConfig, training: TrainConfig) -> DemoResult:
    """Runs every stage below the output, reusing what an earlier run finished, and serves until interrupted.

    Args:
        config: Where, and whether to serve.
        training: How to train; its dataset and output are set here.

    Raises:
        ConfigError: the port is in use; found before any work.
    """
    base = storage.absolute(config.output)
    data, encoder, index = (storage.join(base, name) for name in ("data", "encoder", "index"))
    serving = ServeConfig(index=index, encoder=encoder, port=config.port, ray=config.ray)
    if config.serve:
        check_endpoint(serving)
    clock = _Clock()
    queries, database = (storage.join(base, f"codes-{split}") for split in ("query", "database"))
    with ray_session(config.ray):
        with clock.time("pack"):
            pack(PackConfig(source="digits", output=data, samples_per_shard=500, seed=config.seed))
        with clock.time("train"):
            places = {"dataset": storage.join(data, "train"), "output": encoder, "seed": config.seed}
            trained = train(training.model_copy(update=places))
        with clock.time("encode"):
            for split, output in (("query", queries), ("database", database)):
                place = storage.join(data, split)
                encode(EncodeConfig(encoder=encoder, dataset=place, output=output, features=True, logits=True))
        with clock.time("index"):
            build_index(IndexConfig(codes=database, output=index, shards=INDEX_SHARDS))
        with clock.time("evaluate"):
            report = EvaluateConfig(
                queries=queries,
                database=database,
                output=storage.join(base, "report"),
                k=100,
                baseline_fit=database,
                seed=config.seed,
                title="Handwritten digits",
            )
            evaluated = evaluate(report)
        show(format_table(evaluated))
        show(_times(clock))
        show(f"report       {evaluated.report_uri}")
        if config.serve:
            serve(serving)
    return DemoResult(
        map_at_k=evaluated.map_at_k,
        baselines=evaluated.baselines,
        k=evaluated.k,
        report_uri=evaluated.report_uri,
        index_uri=index,
        encoder_digest=trained.encoder_digest,
        stage_seconds=clock.seconds,
    )


def _times(clock: "_Clock") -> str:
    stages = "  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in clock.seconds.items())
    return f"seconds      {stages}  total {sum(clock.seconds.values()):.0f} s"
