"""The dedup job: near-duplicates in code tables, their groups, and what splits share.

Knows nothing of how tables are made. Equal codes are brought together first, so work and memory go by the distinct
ones; pairs are counted exactly however many they are, and listed up to a limit per group. Nothing is written before all
is found, and `dedup.json` is written last: a run that dies leaves files that no manifest lists, and the next one begins
anew. The driver holds codes, ids and counts of all images, about B/8 + 60 bytes each, and keys of those in groups.
"""

from dataclasses import dataclass

import numpy as np

from cibhash.distinct_codes import distinct_codes
from cibhash.errors import AlreadyExists, ManifestMismatch, NotFound
from cibhash.types import Ids
from cluster import storage
from cluster.code_tables import write_listed
from cluster.dedup.calibration import calibrate, choose_radius
from cluster.dedup.confirm import Correlations, correlations
from cluster.dedup.found import Duplicates, duplicates_from_pairs, duplicates_of, images_of_codes
from cluster.dedup.gallery import choose_gallery
from cluster.dedup.join import Join, join_codes
from cluster.dedup.plan import DedupPlan, plan_dedup
from cluster.dedup.report import report_html
from cluster.dedup.results import Calibration, DedupManifest, Inputs, Overlap, SplitRecord
from cluster.dedup.rows import Rows, read_rows
from cluster.dedup.tables import verdict
from cluster.dedup.written import write_groups, write_pairs
from cluster.dedup_config import DedupConfig
from cluster.manifests import create_manifest, load_manifest
from cluster.runtime import ray_session
from cluster.telemetry import log

REPORT_PAGE = "report.html"


@dataclass(frozen=True)
class DedupResult:
    """What the dedup job found and wrote; after a dry run, what it would compare."""

    dedup_uri: str
    report_uri: str
    images: int
    splits: dict[str, int]
    """Images by split."""
    radius: int
    """-1 after a dry run that would choose it."""
    distinct_codes: int
    candidates: int
    """Pairs of images within the radius."""
    pairs: int
    """Pairs of which groups were made: all candidates, or those confirmed."""
    pairs_listed: int
    groups: int
    duplicates: int
    """Images that are not needed beside their group's representative."""
    largest_group: int
    shared: dict[str, int]
    """Images of a split with a near-duplicate in another: by "QUERY in DATABASE"."""
    method: str
    """How pairs were found; empty where an earlier run had found them."""
    reused: bool
    """An earlier run with the same inputs had finished."""
    encoder_digest: str
    verdict: str


@dataclass(frozen=True)
class _Found:
    duplicates: Duplicates
    radius: int
    distinct: int
    candidates: tuple[int, ...]
    method: str
    correlation: Correlations | None
    looked_at: int
    unreadable: int
    calibration: Calibration | None


def dedup(config: DedupConfig) -> DedupResult:
    """Finds near-duplicates and writes pairs, groups and report below `config.output`.

    With `dry_run` only the tables' manifests are read and checked.

    Raises:
        ManifestMismatch: tables of different encoders or code lengths, the encoder of the copies is another one, a part
            is not what its manifest lists, or OUTPUT holds the result of other inputs.
        ConfigError: a table is named twice, or the radius is as long as the codes.
        DataError: a table has no rows, an id twice or codes of another length; or no radius can be chosen.
    """
    plan = plan_dedup(config)
    output, inputs = storage.absolute(config.output), _inputs(config, plan)
    if (finished := _finished(output, inputs)) is not None:
        return _result(output, plan, finished, method="", reused=True)
    if config.dry_run:
        return _result(output, plan, None, method="", reused=False, radius=config.fixed_radius)
    with ray_session(config.ray):
        rows = read_rows(plan)
        found = _find(plan, rows, config)
        manifest = _write(output, plan, rows, inputs, found)
    log(f"dedup: {verdict(manifest)}")
    return _result(output, plan, manifest, method=found.method, reused=False)


def _find(plan: DedupPlan, rows: Rows, config: DedupConfig) -> _Found:
    calibration = calibrate(plan, rows, config) if config.sampled else None
    radius = config.fixed_radius
    if radius is None:
        assert calibration is not None
        radius = choose_radius(plan, calibration)
        log("dedup: radius chosen", radius=radius)
    distinct = distinct_codes(rows.codes)
    images = images_of_codes(distinct, rows.splits, len(plan.splits))
    limit = config.pair_limit
    join = Join(radius, limit, config.method, config.block_rows)
    joined = join_codes(rows.codes[distinct.order[distinct.starts[:-1]]], images, join)
    found = duplicates_of(distinct, images, joined.summary, limit)
    candidates = tuple(found.counts.sum(axis=(1, 2)).tolist())
    correlation, looked_at, unreadable = None, 0, 0
    if config.confirm:
        every = found.pairs
        measured = correlations(plan, rows, every.first, every.second)
        looked_at, unreadable = len(measured), int(np.isnan(measured).sum())
        kept = measured >= config.confirm
        correlation = measured[kept]
        found = duplicates_from_pairs(every.take(kept), rows.splits, len(plan.splits), radius)
    return _Found(
        duplicates=found,
        radius=radius,
        distinct=len(images),
        candidates=candidates,
        method=joined.method,
        correlation=correlation,
        looked_at=looked_at,
        unreadable=unreadable,
        calibration=calibration,
    )


def _write(output: str, plan: DedupPlan, rows: Rows, inputs: Inputs, found: _Found) -> DedupManifest:
    duplicates = found.duplicates
    sizes = np.bincount(duplicates.representative)
    written = write_groups(output, plan, rows, duplicates.representative)
    listed = DedupManifest.model_construct(
        encoder_digest=plan.encoder_digest,
        bits=plan.bits,
        inputs=inputs,
        radius=found.radius,
        splits=_split_records(plan, rows, duplicates.representative),
        distinct_codes=found.distinct,
        candidates=found.candidates,
        looked_at=found.looked_at,
        unreadable=found.unreadable,
        pairs=int(duplicates.counts.sum()),
        pairs_listed=len(duplicates.pairs.first),
        groups=int(np.count_nonzero(sizes > 1)),
        grouped=int(sizes[sizes > 1].sum()),
        largest_group=int(sizes.max()) if sizes.max() > 1 else 0,
        overlaps=_overlaps(plan, duplicates),
        calibration=found.calibration,
        notes=plan.notes,
        pair_parts=write_pairs(output, plan, rows, duplicates.pairs, found.correlation),
        disagreeing_groups=written.disagreeing,
        group_parts=written.parts,
    )
    gallery = choose_gallery(plan, rows, duplicates, found.correlation)
    page = write_listed(output, REPORT_PAGE, report_html(listed, gallery, plan).encode())
    manifest = DedupManifest.model_validate({**dict(listed), "report": page})
    try:
        create_manifest(output, manifest)
    except AlreadyExists:
        if (other := _finished(output, inputs)) is None:
            raise
        return other
    return manifest


def _split_records(plan: DedupPlan, rows: Rows, representative: Ids) -> tuple[SplitRecord, ...]:
    more = np.bincount(rows.splits[representative != np.arange(len(rows))], minlength=len(plan.splits))
    return tuple(
        SplitRecord(
            name=split.name,
            digest=split.table.manifest.digest,
            dataset_digest=split.table.manifest.dataset_digest,
            images=split.table.rows,
            duplicates=int(more[number]),
        )
        for number, split in enumerate(plan.splits)
    )


def _overlaps(plan: DedupPlan, duplicates: Duplicates) -> tuple[Overlap, ...]:
    within = np.cumsum(duplicates.overlaps, axis=0)
    return tuple(
        Overlap(
            split=name,
            other=other,
            images=tuple(within[:, a, b].tolist()),
            pairs=tuple(duplicates.counts[:, min(a, b), max(a, b)].tolist()),
        )
        for a, name in enumerate(plan.names)
        for b, other in enumerate(plan.names)
    )


def _inputs(config: DedupConfig, plan: DedupPlan) -> Inputs:
    return Inputs(
        digests=tuple(split.table.manifest.digest for split in plan.splits),
        names=plan.names,
        radius=config.radius,
        confirm=config.confirm,
        pairs_per_group=config.pair_limit,
        sampled=config.sampled,
        max_confused=config.max_confused if config.fixed_radius is None else 0.0,
        seed=config.seed if config.sampled else 0,
    )


def _finished(output: str, inputs: Inputs) -> DedupManifest | None:
    """The result of an earlier run with the same inputs.

    Raises:
        ManifestMismatch: there is one, of other inputs.
    """
    try:
        found = load_manifest(DedupManifest, output)
    except NotFound:
        return None
    if found.inputs != inputs:
        before, now = dict(found.inputs), dict(inputs)
        name = next(name for name in now if now[name] != before[name])
        raise ManifestMismatch(
            f"{output} already has the duplicates of other inputs: {name} {before[name]}, asked for: {now[name]}; "
            "choose another output"
        )
    return found


def _result(
    output: str,
    plan: DedupPlan,
    manifest: DedupManifest | None,
    *,
    method: str,
    reused: bool,
    radius: int | None = None,
) -> DedupResult:
    overlaps = manifest.overlaps if manifest is not None else ()
    asked = -1 if radius is None else radius
    return DedupResult(
        dedup_uri=storage.join(output, DedupManifest.file_name),
        report_uri=storage.join(output, REPORT_PAGE),
        images=plan.rows,
        splits={split.name: split.table.rows for split in plan.splits},
        radius=manifest.radius if manifest is not None else asked,
        distinct_codes=manifest.distinct_codes if manifest is not None else 0,
        candidates=sum(manifest.candidates) if manifest is not None else 0,
        pairs=manifest.pairs if manifest is not None else 0,
        pairs_listed=manifest.pairs_listed if manifest is not None else 0,
        groups=manifest.groups if manifest is not None else 0,
        duplicates=manifest.duplicates if manifest is not None else 0,
        largest_group=manifest.largest_group if manifest is not None else 0,
        shared={f"{one.split} in {one.other}": one.images[-1] for one in overlaps if one.split != one.other},
        method=method,
        reused=reused,
        encoder_digest=plan.encoder_digest,
        verdict=verdict(manifest) if manifest is not None else "",
    )
