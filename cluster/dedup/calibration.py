"""What a radius means for these codes, from a sample: how far apart copies, nearest images and images of one label are.

Knows nothing of groups. Sampled images are compared with all images by their codes; of each one a copy is made by a
mild random view, encoded by the tables' encoder and compared with the code that the table has. Every image has a
nearest other one, which is seldom a duplicate: the share of sampled images with another within a radius bounds, from
above, how many a search with this radius would confuse.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from cibhash.errors import CIBHashError, DataError, ManifestMismatch
from cibhash.fast_views import fast_view
from cibhash.hamming import histogram
from cibhash.images import decode_image
from cibhash.near_pairs import code_distances
from cibhash.specs import ViewSpec
from cibhash.types import Codes, Ids, Labels
from cibhash.view_draws import view_generator
from cluster.code_tables import codes_of, read_part
from cluster.dedup.plan import DedupPlan
from cluster.dedup.results import Calibration
from cluster.dedup.rows import Rows, look_up, originals_of
from cluster.dedup_config import DedupConfig
from cluster.encoders import encoder_info, open_encoder
from cluster.encoding.forward import Forward
from cluster.evaluation.label_form import LabelForm, common_form, merge_surveys, survey_labels
from cluster.in_flight import completed, default_limit, named_call
from cluster.manifests import CodePart
from cluster.originals import Original, original_bytes
from cluster.telemetry import log

MILD = ViewSpec(
    crop_scale=(0.8, 1.0),
    crop_ratio=(0.95, 1.05),
    flip=0.0,
    jitter=1.0,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.02,
    grayscale=0.0,
    blur=0.5,
    blur_sigma=(0.1, 1.0),
)
"""A copy: cropped to 80 to 100 % of the area, colors changed by up to 20 %, blurred in half of the cases."""
_IMAGES_PER_TASK = 512
_FORWARD_BATCH = 64


def calibrate(plan: DedupPlan, rows: Rows, config: DedupConfig) -> Calibration:
    """Measures on a seeded sample.

    Copies need the encoder and the originals; where these are not to be had, the result says why there are none.

    Raises:
        ManifestMismatch: the encoder is not the tables'.
    """
    count = min(config.sampled, len(rows))
    sample = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
    log("dedup: calibrating", images=count)
    found = look_up(plan, rows, sample, ["labels", "shard", "offset", "size"])
    form, labeled = _label_form(plan)
    pairs, sharing = _compared(plan, form, rows.codes[sample], form.arrays(found))
    pairs[:, 0] -= 1  # every image finds itself
    nearest = np.bincount((pairs > 0).argmax(axis=1), minlength=plan.bits + 1) if len(rows) > 1 else pairs[0] * 0
    copies, why = _copies(plan, rows, sample, originals_of(found), config)
    shared = sharing - np.bincount([0], [_labeled(form.arrays(found))], plan.bits + 1).astype(np.int64)
    within = np.flatnonzero(np.cumsum(nearest) <= config.max_confused * count)
    return Calibration(
        sampled=count,
        nearest=tuple(nearest.tolist()),
        pairs=tuple(pairs.sum(axis=0).tolist()),
        sharing=tuple(shared.tolist()) if labeled else (),
        copies=tuple(copies.tolist()),
        why_no_copies=why,
        max_confused=config.max_confused,
        suggested=min(int(within[-1]), plan.bits - 1) if len(within) else None,
    )


def choose_radius(plan: DedupPlan, calibration: Calibration) -> int:
    """The radius that the sample suggests.

    Raises:
        DataError: even equal codes are more often those of different images than was allowed.
    """
    if calibration.suggested is None:
        share = calibration.nearest[0] / calibration.sampled
        raise DataError(
            f"radius auto: {share:.1%} of {calibration.sampled:,} sampled images have the same code of {plan.bits} "
            f"bits as another one, --max-confused allows {calibration.max_confused:.1%}: name a radius, with "
            "--confirm, or take longer codes"
        )
    return calibration.suggested


def _label_form(plan: DedupPlan) -> tuple[LabelForm, bool]:
    calls = [
        (None, named_call(_survey, f"labels {part.path}", split.table.uri, part))
        for split in plan.splits
        for part in split.table.parts
    ]
    merged = merge_surveys(survey for _, survey in completed(calls, default_limit()))
    return common_form(merged), merged.labeled > 0


def _labeled(labels: Labels) -> int:
    """Images with a label."""
    return int(np.count_nonzero(labels.any(axis=1) if labels.ndim == 2 else labels != -1))


def _compared(plan: DedupPlan, form: LabelForm, codes: Codes, labels: Labels) -> tuple[Ids, Ids]:
    """Other images by distance, int64 (S, B + 1), and those of the sample together that share a label, (B + 1,)."""
    shared = ray.put(codes), ray.put(labels), ray.put(form)

    def calls() -> Iterator[tuple[None, Callable[[], Any]]]:
        for split in plan.splits:
            for part in split.table.parts:
                yield None, named_call(_count, f"calibrate {part.path}", *shared, split.table.uri, part)

    pairs, sharing = np.zeros((len(codes), plan.bits + 1), np.int64), np.zeros(plan.bits + 1, np.int64)
    for _, (more, more_sharing) in completed(calls(), default_limit()):
        pairs += more
        sharing += more_sharing
    return pairs, sharing


def _copies(
    plan: DedupPlan, rows: Rows, sample: Ids, originals: list[Original], config: DedupConfig
) -> tuple[npt.NDArray[np.int64], str]:
    """Copies by the distance to their original, int64 (bits + 1,), and why there are none or fewer than sampled."""
    nothing = np.empty(0, np.int64)
    try:
        info = encoder_info(plan.encoder_uri)
    except CIBHashError as error:
        return nothing, str(error)
    if info.digest != plan.encoder_digest:
        raise ManifestMismatch(
            f"{plan.encoder_uri}: encoder {info.digest[:16]}..., the code tables were made by "
            f"{plan.encoder_digest[:16]}..."
        )
    manifest = plan.splits[0].table.manifest
    calls = []
    for start in range(0, len(sample), _IMAGES_PER_TASK):
        some = slice(start, start + _IMAGES_PER_TASK)
        images = list(zip(originals[some], rows.splits[sample[some]].tolist(), rows.ids[sample[some]], strict=True))
        arguments = (plan.encoder_uri, plan.encoder_digest, manifest.precision, images, config.seed)
        calls.append((some, named_call(_encode_copies, f"copies {start}", *arguments)))
    counts, unread, reason = np.zeros(plan.bits + 1, np.int64), 0, ""
    for some, (codes, made, why) in completed(calls, default_limit()):
        distances = code_distances(rows.codes[sample[some]][made], codes)
        counts += np.bincount(distances, minlength=plan.bits + 1)
        unread, reason = unread + int(np.count_nonzero(~made)), reason or why
    if unread:
        reason = f"{unread:,} of {len(sample):,} originals could not be read: {reason}"
    return (counts if counts.any() else nothing), reason


@ray.remote
def _survey(uri: str, part: CodePart) -> Any:
    return survey_labels(read_part(uri, part, ["labels"]))


@ray.remote
def _count(codes: Codes, labels: Labels, form: LabelForm, uri: str, part: CodePart) -> tuple[Ids, Ids]:
    table = read_part(uri, part, ["code", "labels"])
    total, sharing = histogram(codes, codes_of(table), labels, form.arrays(table))
    return total, sharing.sum(axis=0)


@ray.remote(num_cpus=1)
def _encode_copies(
    uri: str, digest: str, precision: Any, images: list[tuple[Original, int, int]], seed: int
) -> tuple[Codes, npt.NDArray[np.bool_], str]:
    """Codes of a copy of each image that can be read, which these are, and why the first of the others cannot."""
    encoder = open_encoder(uri)
    if encoder.digest != digest:
        raise ManifestMismatch(f"{uri}: encoder {encoder.digest[:16]}..., it was {digest[:16]}...")
    size, views, made, why = encoder.spec.image_size, [], np.zeros(len(images), np.bool_), ""
    for number, (original, split, id_) in enumerate(images):
        try:
            image = np.asarray(decode_image(original_bytes(original)))
        except CIBHashError as error:
            why = why or str(error)
            continue
        view = fast_view(image, MILD, size, view_generator(seed, split, int(id_), 0))
        views.append(view.transpose(2, 0, 1))
        made[number] = True
    if not views:
        return np.empty((0, encoder.spec.bits // 8), np.uint8), made, why
    forward = Forward(encoder, min(_FORWARD_BATCH, len(views)), precision, compiled=False)
    return forward(np.stack(views)).codes, made, why
