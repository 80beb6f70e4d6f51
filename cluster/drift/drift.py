"""The drift job: codes of the same images by an old and a new encoder, and whether to switch.

Knows nothing of encoders; it reads code tables. The sample, and so every number, depends on keys and codes alone.
"""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cibhash import drift as measures
from cibhash.errors import ConfigError
from cibhash.types import Codes
from cluster import storage
from cluster.code_versions import open_codes
from cluster.drift import verdict
from cluster.drift.findings import Findings, Score, Side
from cluster.drift.left_beside import leave_beside
from cluster.drift.report import report_html
from cluster.drift.sample import Pairs, common_bits, pairs
from cluster.drift_config import DriftConfig
from cluster.evaluation.bootstrap import bootstrap_means, interval_of
from cluster.index.versions import open_index
from cluster.manifests import CodeManifest
from cluster.runtime import ray_session
from cluster.telemetry import log

REPORT_FILE = "report.html"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DriftResult:
    """What a comparison found and wrote; after a dry run, what it would compare."""

    findings_uri: str
    report_uri: str
    bits: int
    images: int
    """0 after a dry run, as all below."""
    queries: int
    mean_flipped: float
    unchanged: float
    overlap: float
    overlap_mixed: float
    map_old: float | None
    map_new: float | None
    map_mixed: float | None
    may_mix: bool | None
    verdict: str
    beside_index: str
    """Where the findings lie for whoever switches versions; empty where no index was named."""


def drift(config: DriftConfig) -> DriftResult:
    """Compares, writes the findings and the report.

    Raises:
        NotFound: a table or the index is not there.
        ManifestMismatch: the tables have no code length in common.
        DataError: less than two images are in both tables.
        ConfigError: `index` is of neither encoder.
    """
    old, new = ((uri, open_codes(uri)) for uri in map(storage.absolute, (config.old, config.new)))
    bits, output = common_bits(old, new), storage.absolute(config.output)
    if config.index:
        _check_index(config.index, old[1], new[1])
    if config.dry_run:
        places = storage.join(output, Findings.file_name), storage.join(output, REPORT_FILE)
        return DriftResult(*places, bits, 0, 0, 0.0, 0.0, 0.0, 0.0, None, None, None, None, "", "")
    with ray_session(config.ray):
        sample = pairs(old, new, config.sample, bits)
    log("drift: comparing", images=len(sample), bits=bits)
    findings = compare(sample, (_side(old, sample.only_old), _side(new, sample.only_new)), config)
    report_uri = storage.join(output, REPORT_FILE)
    storage.write_bytes(report_uri, report_html(findings).encode())
    findings_uri = storage.join(output, Findings.file_name)
    storage.write_bytes(findings_uri, findings.to_json())
    beside = leave_beside(storage.absolute(config.index), findings) if config.index else ""
    return _result(findings, findings_uri, report_uri, beside)


def compare(sample: Pairs, sides: tuple[Side, Side], config: DriftConfig) -> Findings:
    """All numbers of a sample.

    Args:
        sample: Images with both codes.
        sides: The tables they are from.
        config: Queries, k, tolerance and seed.
    """
    count, threads = len(sample), len(os.sched_getaffinity(0))
    k, rows = min(config.k, count - 1), np.arange(min(config.queries, count))
    change = measures.code_change(sample.old, sample.new)
    asked: dict[str, tuple[Codes, Codes]] = {
        "old": (sample.old[rows], sample.old),
        "new": (sample.new[rows], sample.new),
        "mixed": (sample.new[rows], sample.old),
    }
    near = {name: measures.neighbors_of_some(*codes, rows, k, threads) for name, codes in asked.items()}
    terms = {
        "overlap": measures.overlap(near["old"], near["new"]),
        "overlap_mixed": measures.overlap(near["old"], near["mixed"]),
    }
    if sample.labels is not None:
        for name, codes in asked.items():
            terms[f"map_{name}"] = measures.average_precision(*codes, rows, sample.labels, k, threads)
        terms["new_minus_old"] = terms["map_new"] - terms["map_old"]
        terms["mixed_minus_old"] = terms["map_mixed"] - terms["map_old"]
    scores = _scores(terms, config.seed)
    unchanged, changed = change.unchanged, scores.get("mixed_minus_old")
    mixes = verdict.may_mix(unchanged, changed, scores["overlap_mixed"], config.tolerance)
    sentences = (
        verdict.of_quality(scores.get("new_minus_old"), k),
        verdict.of_mixing(mixes, unchanged, changed, scores["overlap_mixed"], k),
    )
    return Findings(
        old=sides[0],
        new=sides[1],
        bits=8 * sample.old.shape[1],
        images=count,
        queries=len(rows),
        k=k,
        tolerance=config.tolerance,
        seed=config.seed,
        flip_rates=tuple(change.flip_rates.tolist()),
        flipped=tuple(change.flipped.tolist()),
        mean_flipped=change.mean_flipped,
        unchanged=unchanged,
        overlap=scores["overlap"],
        overlap_mixed=scores["overlap_mixed"],
        overlap_by_chance=k / (count - 1),
        map_old=scores.get("map_old"),
        map_new=scores.get("map_new"),
        map_mixed=scores.get("map_mixed"),
        new_minus_old=scores.get("new_minus_old"),
        mixed_minus_old=changed,
        verdict=" ".join(sentences),
        may_mix=mixes,
    )


def _scores(terms: dict[str, Floats], seed: int) -> dict[str, Score]:
    means = bootstrap_means(np.stack(list(terms.values())), seed)
    return {
        name: Score(mean=float(values.mean()), interval=interval_of(means[:, place]))
        for place, (name, values) in enumerate(terms.items())
    }


def _side(table: tuple[str, CodeManifest], only_here: int) -> Side:
    uri, manifest = table
    return Side(
        codes_uri=uri,
        digest=manifest.digest,
        encoder_digest=manifest.encoder_digest,
        encoder_uri=manifest.encoder_uri,
        only_here=only_here,
    )


def _check_index(uri: str, old: CodeManifest, new: CodeManifest) -> None:
    digest = open_index(uri).manifest.encoder_digest
    if digest not in (old.encoder_digest, new.encoder_digest):
        raise ConfigError(
            f"index: {uri} is of encoder {digest[:16]}..., the tables are of {old.encoder_digest[:16]}... and "
            f"{new.encoder_digest[:16]}..."
        )


def _result(findings: Findings, findings_uri: str, report_uri: str, beside: str) -> DriftResult:
    scores = findings.map_old, findings.map_new, findings.map_mixed
    means = [score.mean if score is not None else None for score in scores]
    return DriftResult(
        findings_uri=findings_uri,
        report_uri=report_uri,
        bits=findings.bits,
        images=findings.images,
        queries=findings.queries,
        mean_flipped=findings.mean_flipped,
        unchanged=findings.unchanged,
        overlap=findings.overlap.mean,
        overlap_mixed=findings.overlap_mixed.mean,
        map_old=means[0],
        map_new=means[1],
        map_mixed=means[2],
        may_mix=findings.may_mix,
        verdict=findings.verdict,
        beside_index=beside,
    )
