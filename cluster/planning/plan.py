"""The plan job: sample, quality of each length, measurement, choice, and on request a trial of what was chosen.

Knows nothing of the command line. Reads the sample and writes plan.json; starts no Ray. Measures again on every run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from cibhash.binary import prefix
from cibhash.errors import ConfigError
from cluster import storage
from cluster.index.kinds import APPROXIMATE, TABLE_BITS, IndexKind
from cluster.manifests import CodeManifest
from cluster.planning.calibration import Stopwatch, calibrate
from cluster.planning.choice import Candidate, Demand, best_of, choose, nearest_miss
from cluster.planning.code_quality import LengthQuality, length_qualities
from cluster.planning.commands import commands_for
from cluster.planning.generated_codes import GeneratedCodes
from cluster.planning.kind_model import KindModel
from cluster.planning.sample import open_sample, read_sample
from cluster.planning.verification import Verification, default_items, verify
from cluster.planning_config import PlanConfig
from cluster.telemetry import log

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class PlanResult:
    """What the plan job found; of a dry run, what it would look at."""

    codes_uri: str
    sample_rows: int
    items: int
    k: int
    quality_is: str
    """`mAP@k` or `agreement`; empty after a dry run."""
    lengths: tuple[LengthQuality, ...]
    """Of every length, ascending."""
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    """The best layout of every kind and length that was measured, the cheapest first, then those that fail."""
    commands: tuple[str, ...]
    """That build and serve what was chosen."""
    contention: float
    """Seconds that passed for each second that a core measured: above 1, this machine had other work."""
    verification: Verification | None
    plan_uri: str
    """Empty: it was not asked for."""
    problem: str
    """Why nothing could be chosen; empty: something was."""


def plan(config: PlanConfig) -> PlanResult:
    """Plans the index; with `dry_run` only says of which lengths and kinds.

    Raises:
        NotFound: the sample is missing or not complete.
        ConfigError: a length that its codes do not have, or no kind that can hold them.
        DataError: too few rows, or a part that cannot be read.
        ManifestMismatch: a part is not what its manifest says.
        CIBHashError: the process that verifies died.
    """
    uri, manifest = open_sample(config.codes, config.bits)
    lengths = config.bits or manifest.prefixes
    if not any(_fits(kind, bits) for kind in config.kinds for bits in lengths):
        raise ConfigError(f"kinds {' '.join(config.kinds)}: none holds codes of {', '.join(map(str, lengths))} bits")
    if config.dry_run:
        rows = min(config.sample_rows, manifest.rows_out)
        return PlanResult(uri, rows, config.items, config.k, "", (), None, (), (), 1.0, None, "", "")
    sample = read_sample(uri, manifest, config.sample_rows, config.seed)
    log(
        f"plan: {len(sample.codes):,} codes of {manifest.bits} bits, labels: {'no' if sample.labels is None else 'yes'}"
    )
    known = sorted({*lengths, *manifest.prefixes})
    qualities = {one.bits: one for one in length_qualities(sample.codes, sample.labels, known, config.k, config.seed)}
    relative = {bits: qualities[bits].relative for bits in lengths}
    generated = {bits: GeneratedCodes(prefix(sample.codes, bits), config.seed) for bits in lengths}
    stopwatch = Stopwatch(config.clock)
    wanted = _wanted(config, relative)
    log(f"plan: measuring {len(wanted)} kinds of shard for about {config.calibration_seconds:g} s")
    models = calibrate(generated, wanted, config.items, config.k, config.calibration_seconds, stopwatch)
    demand = demand_of(config)
    best = {id(model): best_of(model, relative[model.bits], demand) for model in models}
    candidates = sorted(best.values(), key=lambda one: (len(one.shortfalls), one.cost))
    chosen = choose(candidates)
    verification = None
    if chosen is not None and config.verify:
        model = next(model for model in models if best[id(model)] is chosen)
        verification = _verified(config, chosen, model, generated)
    result = PlanResult(
        codes_uri=uri,
        sample_rows=len(sample.codes),
        items=config.items,
        k=config.k,
        quality_is="agreement" if sample.labels is None else f"mAP@{min(config.k, len(sample.codes) - 1)}",
        lengths=tuple(qualities[bits] for bits in known),
        chosen=chosen,
        candidates=tuple(candidates),
        commands=() if chosen is None else _commands(config, uri, manifest, chosen),
        contention=stopwatch.contention,
        verification=verification,
        plan_uri=storage.join(storage.absolute(config.output), PLAN_FILE) if config.output else "",
        problem="" if chosen is not None else _problem(nearest_miss(candidates)),
    )
    if result.plan_uri:
        content = {**asdict(result), "models": [_described(model) for model in models], "demand": asdict(demand)}
        storage.write_bytes(result.plan_uri, f"{json.dumps(content, indent=1)}\n".encode())
    return result


def demand_of(config: PlanConfig) -> Demand:
    """What is asked, in plain numbers."""
    return Demand(
        items=config.items,
        node_bytes=config.node_bytes,
        reserved_bytes=config.reserved_bytes,
        cpus_per_node=config.cpus_per_node,
        max_nodes=config.max_nodes,
        latency_ms=config.latency_ms,
        queries_per_second=config.queries_per_second,
        queries_per_request=config.queries_per_request,
        recall=config.recall,
        quality=config.quality,
        contiguous=config.contiguous,
        overhead_ms=config.overhead_ms,
        hop_cpu_ms=config.hop_cpu_ms,
    )


def _fits(kind: IndexKind, bits: int) -> bool:
    return kind != "table" or bits == TABLE_BITS


def _wanted(config: PlanConfig, relative: Mapping[int, float]) -> list[tuple[int, IndexKind]]:
    """What is measured, kind by kind.

    Of a length that is not good enough that is one kind; where all is to be found, none that may miss some.
    """
    wanted: list[tuple[int, IndexKind]] = []
    for kind in config.kinds:
        for bits, quality in relative.items():
            if not _fits(kind, bits):
                continue
            is_needed = quality >= config.quality and not (kind in APPROXIMATE and config.recall >= 1.0)
            if is_needed or not any(length == bits for length, _ in wanted):
                wanted.append((bits, kind))
    return wanted


def _verified(
    config: PlanConfig, chosen: Candidate, model: KindModel, generated: Mapping[int, GeneratedCodes]
) -> Verification:
    items = config.verify_items or default_items(config.items, model, contiguous=config.contiguous)
    log(f"plan: verifying {chosen.kind} of {chosen.bits} bits over {items:,} codes")
    codes = generated[chosen.bits]
    return verify(chosen, model, codes, items, contiguous=config.contiguous, clock=config.clock)


def _commands(config: PlanConfig, uri: str, manifest: CodeManifest, chosen: Candidate) -> tuple[str, ...]:
    codes = uri if manifest.rows_out == config.items else "CODES"
    return commands_for(chosen, codes, manifest.bits)


def _problem(nearest: Candidate) -> str:
    """The one line of a plan that nothing fulfils."""
    first = max(nearest.shortfalls, key=lambda one: one.excess)
    others = [one.constraint for one in nearest.shortfalls if one is not first]
    more = f" (and {', '.join(others)})" if others else ""
    which = f"{nearest.kind} of {nearest.bits} bits (shards {nearest.shards}, nodes {nearest.nodes})"
    fails = f"fails at {first.constraint}: {first.text}, {first.excess:.0%} off{more}"
    return f"no index does all that is asked; the nearest, {which}, {fails}"


def _described(model: KindModel) -> dict[str, object]:
    """What was measured of a kind, for plan.json."""
    return {
        "bits": model.bits,
        "kind": model.spec.kind,
        "parameters": dict(model.spec.parameters),
        "largest_measured": model.measured,
        "one_query_s_by_work": _pairs(model.one_s.points),
        "block_query_s_by_work": _pairs(model.block_s.points),
    }


def _pairs(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [list(point) for point in points]
