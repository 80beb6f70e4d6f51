"""CIFAR-10 with a frozen MobileNetV2 at 96 pixels: recipes, views, amounts of data and ablations side by side.

    python tests/benchmarks/cifar10_study.py features DATA WEIGHTS WORK    # an hour of one core; resumable
    python tests/benchmarks/cifar10_study.py train WORK [--seeds 3] [--only NAME,...]
    python tests/benchmarks/cifar10_study.py table WORK

DATA: folder with cifar10-{database,query}-*.tar. WEIGHTS: mobilenetv2_100_tf_imagenet.safetensors. Features are
computed once, by the product's views and feature extractor; every run trains a head on them with the product's loop
and is judged by 10,000 queries against 50,000 images, mAP@1000, tie-aware. "Online": two new views of every image each
epoch.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cibhash import asymmetric, hamming
from cibhash.baselines import fit_itq, fit_random_hyperplanes
from cibhash.binary import pack_bits, prefix
from cibhash.encoder import EncoderSpec, HashEncoder, new_encoder
from cibhash.frozen_features import feature_extractor
from cibhash.images import decode_image
from cibhash.metrics import from_histogram
from cibhash.rotation import FixedRotation, fit_rotation
from cibhash.sampling import cached_order
from cibhash.specs import BackboneSpec, ViewSpec
from cibhash.types import ViewBatch
from cluster.training.exact_neighbors import centered, nearest, unit_length
from cluster.training.monitor import HeldOut, Monitor
from cluster.training.run import Surroundings, train_run
from cluster.training.view_batches import CachedViews, Share
from cluster.training.view_making import PLAIN, make_views
from cluster.training_config import TrainConfig

SHARDS = {"query": range(2), "database": range(10)}
PER_SHARD, SIZE, K, LENGTHS = 5000, 96, 1000, (16, 32, 64, 128)
_JUDGED_LOOKS = 4
BACKBONE = {"name": "mobilenetv2_100", "weights": "none", "image_size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3}
PLAN = (
    # split, shards, engine (plain: not augmented), first and last view
    ("query", (0, 1), "plain", 0, 1),
    ("database", tuple(range(10)), "plain", 0, 1),
    ("database", (0,), "opencv", 0, 16),
    ("database", tuple(range(1, 10)), "opencv", 0, 4),
    ("database", (0,), "pillow", 0, 8),
    ("database", tuple(range(1, 10)), "opencv", 4, 8),
    ("database", (0,), "opencv", 16, 120),
)


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    name: str
    shards: int = 1
    views: int = 8
    engine: str = "opencv"
    online: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3


def _dedicated(bits: int, **settings: Any) -> Run:
    return Run(f"paper, dedicated {bits}", settings={"bits": (bits,), **settings})


NEIGHBOUR = {"rotation": 256, "neighbors": 10, "weight_average": 0.998}
RUNS = (
    Run("paper, online, 60 epochs", online=True, views=120),
    Run("paper, online, 30 epochs", online=True, views=60, settings={"epochs": 30}),
    *(Run(f"paper, cached V={v}", views=v) for v in (2, 4, 8, 16)),
    Run("paper, cached V=16, 30 epochs", views=16, settings={"epochs": 30}),
    *(_dedicated(bits) for bits in LENGTHS),
    Run("parity, cached V=8 (Pillow views, last batch kept)", engine="pillow", settings={"drop_last": False}),
    Run("clean, Pillow views, cached V=8", engine="pillow"),
    Run("ablation: no KL (beta 0)", settings={"beta": 0.0}),
    Run("ablation: relaxed, sign at test", settings={"code_sampling": "relaxed"}),
    Run("Bernoulli codes", settings={"code_sampling": "bernoulli"}),
    Run("no stop-gradient in the KL", settings={"kl_stopgrad": False}),
    Run("paper + rotation 256", settings={"rotation": 256}),
    Run("paper + averaged weights", settings={"weight_average": 0.998}),
    Run("neighbour without averaged weights, cached V=8", settings={"rotation": 256, "neighbors": 10, "epochs": 40}),
    Run("neighbour + Bernoulli codes, cached V=8", settings={**NEIGHBOUR, "epochs": 40, "code_sampling": "bernoulli"}),
    Run("neighbour, cached V=8", settings={**NEIGHBOUR, "epochs": 40}),
    Run("neighbour, cached V=16", views=16, settings={**NEIGHBOUR, "epochs": 40}),
    *(
        Run(
            f"{name}, {shards * 5},000 images, V={views}",
            shards=shards,
            views=views,
            settings={**extra, "epochs": epochs},
        )
        for name, extra in (("paper", {}), ("neighbour", NEIGHBOUR))
        for shards, views, epochs in ((4, 4, 15), (10, 8, 10))
    ),
)


class OnlineViews:
    """Two views per epoch that no other epoch sees."""

    def __init__(self, features: np.ndarray[Any, Any]) -> None:
        self._features = features

    def steps(self, share: Share) -> int:
        return self._features.shape[1] // share.batch_size

    def epochs(self, first: int, last: int, share: Share, first_step: int = 0) -> Iterator[Iterator[ViewBatch]]:
        for epoch in range(first, last):
            order = cached_order(self._features.shape[1], seed=share.seed, epoch=epoch)
            yield (self._batch(epoch, order[i * 64 : i * 64 + 64]) for i in range(self.steps(share)))

    def _batch(self, epoch: int, images: np.ndarray[Any, Any]) -> ViewBatch:
        a, b = (torch.from_numpy(self._features[2 * epoch + view][images]).float() for view in (0, 1))
        return ViewBatch(a, b, images)


def make_features(data: Path, weights: Path, work: Path) -> None:
    """Writes one file per (shard, view), those that are missing."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    work.mkdir(parents=True, exist_ok=True)
    spec = EncoderSpec(BackboneSpec(**{**BACKBONE, "options": {"pad_type": "same"}}), (8,))
    encoder = new_encoder(spec, seed=0, weights=str(weights)).eval()
    precise = feature_extractor(encoder, compiled=True)
    quick = feature_extractor(encoder, precision="bfloat16", compiled=True)
    for split, shards, engine, first, last in PLAN:
        for shard in shards:
            missing = [view for view in range(first, last) if not _file(work, split, shard, engine, view).exists()]
            if not missing:
                continue
            images, labels = _read(data / f"cifar10-{split}-{shard:06d}.tar")
            np.save(work / f"{split}-{shard}-labels.npy", labels)
            ids = [shard * PER_SHARD + position for position in range(len(images))]
            for view in missing:
                begun, blocks = time.monotonic(), []
                for rows in (slice(start, start + 128) for start in range(0, len(images), 128)):
                    plain = engine == "plain"
                    views = make_views(
                        images[rows],
                        ids[rows],
                        ViewSpec(engine="opencv" if plain else engine),  # type: ignore[arg-type]
                        SIZE,
                        seed=0,
                        epoch=0,
                        view=PLAIN if plain else view,
                    )
                    found = (precise if plain else quick)(views.images).numpy()
                    blocks.append(found if plain else found.astype(np.float16))
                path = _file(work, split, shard, engine, view)
                np.save(path.with_suffix(".part.npy"), np.concatenate(blocks))
                path.with_suffix(".part.npy").rename(path)
                print(f"{path.name}: {len(images) / (time.monotonic() - begun):.0f} views/s", file=sys.stderr)


def train_all(work: Path, seeds: int, only: list[str]) -> None:
    """Runs what has no result yet."""
    torch.set_num_threads(1)
    done = {(row["name"], row["seed"]) for row in _results(work)}
    judge = _Judge(work)
    for seed, run in itertools.product(range(seeds), RUNS):
        if (only and not any(part in run.name for part in only)) or (run.name, seed) in done or seed >= run.seeds:
            continue
        if not all(path.exists() for path in _needed(work, run)):
            print(f"skipped, features are missing: {run.name}", file=sys.stderr)
            continue
        row = _train(work, run, seed, judge)
        with open(work / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr)


def _train(work: Path, run: Run, seed: int, judge: "_Judge") -> dict[str, Any]:
    fixed = {"dataset": "-", "output": "-", "bits": LENGTHS, "num_cached_views": run.views, "backbone": BACKBONE}
    config = TrainConfig.model_validate({**fixed, "seed": seed, "num_streams": 1, **run.settings})
    config = config.model_copy(update={"backbone": BackboneSpec(**{**BACKBONE, "options": {"pad_type": "same"}})})
    encoder = new_encoder(EncoderSpec(config.backbone, config.bits, config.hidden, config.rotation), seed=seed)
    features = np.stack(
        [
            np.concatenate([np.load(_file(work, "database", shard, run.engine, view)) for shard in range(run.shards)])
            for view in range(run.views)
        ]
    )
    neighbors = None
    if config.neighbors:
        neighbors = _graph(features, config.neighbors)
    if config.rotation:
        encoder.head[0].load_state_dict(FixedRotation.of(fit_rotation([features[0], features[1]], 256)).state_dict())
        with torch.no_grad():
            rotated = [encoder.fixed_head(torch.from_numpy(view).float()).numpy() for view in features]
        features = np.stack(rotated)
    share = Share(0, 1, 1, config.batch_size, seed, config.drop_last)
    source: Any = CachedViews(features, np.arange(features.shape[1]), neighbors, config.neighbor_probability)
    if run.online:
        source = OnlineViews(features)
    looks: list[dict[str, Any]] = []
    monitor = judge.monitor(encoder, config) if run.shards < 10 else None

    def note(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["kind"] == "look" and row["step"] % (_JUDGED_LOOKS * config.monitor.every_steps) == 0:
                looks.append({**row, "dev": judge.dev(encoder)})

    begun = time.monotonic()
    train_run(config, encoder, source, share, store=None, monitor=monitor, surroundings=Surroundings(emit=note))
    seconds = time.monotonic() - begun
    found = judge.judge(encoder.eval())
    return {
        "name": run.name,
        "seed": seed,
        "images": features.shape[1],
        "steps": source.steps(share) * config.epochs,
        "seconds": round(seconds, 1),
        **found,
        "looks": [
            {
                name: round(row[name], 5)
                for name in ("step", "sep10", "nt_xent", "oracle", "bit_entropy", "dev")
                if name in row
            }
            for row in looks
        ],
        "commit": _commit(),
    }


class _Judge:
    """Queries and database, as plain features."""

    def __init__(self, work: Path) -> None:
        self.features, self.labels = {}, {}
        for split, shards in SHARDS.items():
            files = [_file(work, split, shard, "plain", 0) for shard in shards]
            self.features[split] = torch.from_numpy(np.concatenate([np.load(file) for file in files]))
            self.labels[split] = np.concatenate([np.load(work / f"{split}-{shard}-labels.npy") for shard in shards])
        self._held_out = [np.load(_file(work, "database", 9, "opencv", view)).astype(np.float32) for view in (0, 1)]

    def monitor(self, encoder: HashEncoder, config: TrainConfig) -> Monitor:
        """Looks at 500 images of the last shard, which only the runs on all images train on."""
        rows = np.random.default_rng(0).permutation(PER_SHARD)[:500]
        views = [self.features["database"][9 * PER_SHARD :][rows], *(torch.from_numpy(v[rows]) for v in self._held_out)]
        with torch.no_grad():
            plain, a, b = (encoder.fixed_head(view) for view in views)
        labels = self.labels["database"][9 * PER_SHARD :][rows]
        held_out = HeldOut((plain, a, b), labels)
        return Monitor(held_out, None, prefixes=config.bits, temperature=config.temperature, batch_size=64)

    def judge(self, encoder: HashEncoder) -> dict[str, dict[str, float]]:
        """mAP@1000 by length, symmetric and with the queries' logits."""
        with torch.no_grad():
            logits = {split: encoder.head(features).numpy() for split, features in self.features.items()}
        codes = {
            split: pack_bits(torch.sigmoid(torch.from_numpy(value)).numpy() > 0.5) for split, value in logits.items()
        }
        symmetric, asymmetric_map = {}, {}
        for bits in encoder.spec.prefixes:
            pair = prefix(codes["query"], bits), prefix(codes["database"], bits)
            symmetric[str(bits)] = self._map(hamming.histogram(*pair, self.labels["query"], self.labels["database"]))
            weights = asymmetric.query_weights(logits["query"], bits)
            found = asymmetric.histogram(weights, *pair, self.labels["query"], self.labels["database"])
            asymmetric_map[str(bits)] = self._map(found)
        return {"map": symmetric, "map_asymmetric": asymmetric_map}

    def dev(self, encoder: HashEncoder) -> float:
        """mAP@1000 at the middle length among 12,000 database images that no run but those on all trains on."""
        bits = sorted(encoder.spec.prefixes)[len(encoder.spec.prefixes) // 2]
        features, labels = self.features["database"][-12_000:], self.labels["database"][-12_000:]
        with torch.no_grad():
            logits = torch.cat([encoder.head(block) for block in features.split(2000)])
        codes = prefix(pack_bits((logits > 0).numpy()), bits)
        return self._map(hamming.histogram(codes[:2000], codes[2000:], labels[:2000], labels[2000:]))

    def baselines(self) -> dict[str, dict[str, float]]:
        """Hashes without learning, fitted on the 5,000 training images, and the float features."""
        fit, found = self.features["database"][:PER_SHARD].numpy(), {}
        for name, fitted in (
            ("PCA-ITQ", lambda bits: fit_itq(fit, bits)),
            ("random hyperplanes", lambda bits: fit_random_hyperplanes(fit, bits, 0)),
        ):
            found[name] = {}
            for bits in LENGTHS:
                linear = fitted(bits)
                pair = (linear.encode(self.features[split].numpy()) for split in ("query", "database"))
                counts = hamming.histogram(*pair, self.labels["query"], self.labels["database"])
                found[name][str(bits)] = self._map(counts)
        return found

    @staticmethod
    def _map(counts: tuple[Any, Any]) -> float:
        return round(float(from_histogram(*counts, k=K).map_at_k), 5)


def _graph(features: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Neighbors by the centered cosine of the mean over the views."""
    units = unit_length(features.mean(axis=0, dtype=np.float32))
    vectors = centered(units, units.mean(axis=0, dtype=np.float64))
    return nearest(vectors, vectors, np.arange(len(vectors)), k).rows


def table(work: Path) -> None:
    """Prints means and half ranges over seeds as Markdown."""
    rows = _results(work)
    baselines = work / "baselines.json"
    if not baselines.exists():
        baselines.write_text(json.dumps(_Judge(work).baselines()))
    for kind, heading in (("map", "symmetric"), ("map_asymmetric", "query logits x database bits")):
        print(f"| {heading} | images | steps | s | {' | '.join(f'{bits} bits' for bits in LENGTHS)} | seeds |")
        print("|---" * (5 + len(LENGTHS)) + "|")
        for name, values in json.loads(baselines.read_text()).items() if kind == "map" else ():
            print(f"| {name} | 5,000 | | | {' | '.join(f'{values[str(bits)]:.4f}' for bits in LENGTHS)} | |")
        for run in RUNS:
            found = [row for row in rows if row["name"] == run.name]
            if found:
                cells = " | ".join(_spread(found, kind, str(bits)) for bits in LENGTHS)
                size = f"{found[0]['images']:,} | {found[0]['steps']:,}"
                seconds = f"{np.median([row['seconds'] for row in found]):.0f}"
                print(f"| {run.name} | {size} | {seconds} | {cells} | {len(found)} |")
        print()
    _selection(rows)


def _selection(rows: list[dict[str, Any]]) -> None:
    """What choosing a checkpoint without labels costs: mAP of the best one of a run, less that of the one chosen."""
    print("| chosen by | mAP lost on other images: mean | largest | runs |")
    print("|---|---|---|---|")
    runs = [row["looks"] for row in rows if row["looks"] and "dev" in row["looks"][0]]
    rules: dict[str, Any] = {
        "sep10": lambda looks: max(looks, key=lambda look: look["sep10"]),
        "held-out NT-Xent": lambda looks: min(looks, key=lambda look: look["nt_xent"]),
        "labels of the held-out images": lambda looks: max(looks, key=lambda look: look["oracle"]),
        "last": lambda looks: looks[-1],
    }
    for name, choose in rules.items():
        lost = [max(look["dev"] for look in looks) - choose(looks)["dev"] for looks in runs] or [float("nan")]
        print(f"| {name} | {np.mean(lost):.4f} | {max(lost):.4f} | {len(lost)} |")


def _spread(rows: list[dict[str, Any]], kind: str, bits: str) -> str:
    values = [row[kind][bits] for row in rows if bits in row[kind]]
    if not values:
        return ""
    spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _results(work: Path) -> list[dict[str, Any]]:
    path = work / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _needed(work: Path, run: Run) -> list[Path]:
    return [_file(work, "database", s, run.engine, v) for s in range(run.shards) for v in range(run.views)]


def _file(work: Path, split: str, shard: int, engine: str, view: int) -> Path:
    return work / f"{split}-{shard}-{engine}-{view:03d}.npy"


def _read(path: Path) -> tuple[list[Any], Any]:
    images, labels = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            content = file.read() if file else b""
            if member.name.endswith(".cls"):
                labels.append(int(content))
            else:
                images.append(decode_image(content))
    return images, np.array(labels)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    features = commands.add_parser("features")
    for name in ("data", "weights", "work"):
        features.add_argument(name, type=Path)
    training = commands.add_parser("train")
    training.add_argument("work", type=Path)
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--only", type=lambda text: text.split(","), default=[])
    commands.add_parser("table").add_argument("work", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "features":
        make_features(arguments.data, arguments.weights, arguments.work)
    elif arguments.command == "train":
        train_all(arguments.work, arguments.seeds, arguments.only)
    else:
        table(arguments.work)


if __name__ == "__main__":
    main()
