"""Heads and cells of the tables that the report and `metrics.md` share, as plain text.

Knows nothing of pages.
"""

from cluster.evaluation.results import EMPTY_BALL_RADIUS, Evaluation, Health, SeriesMetrics

ASYMMETRIC_ABOUT = (
    "Asymmetric: the same database codes, ranked by the sum of the query’s logits, by size, over the bits that differ."
)
HEALTH_ABOUT = (
    "Distinct: codes over images. Imbalance: how far the share of ones of a bit is from one half, mean over bits; "
    "worst bit: the share of ones farthest from it; constant: bits without information. Entropy of a bit and mutual "
    "information (MI) of two are in bits. Shared codes: images whose code another image has too. Collisions: pairs of "
    "equal codes without a common label."
)
DETAILS_ABOUT = (
    "Ties worst and best: mAP if relevant images came last or first within every distance. min(k, R) and R: mAP with "
    "these denominators, R the relevant images of the database. mAP@ALL: over the whole database. NDCG: a relevant "
    "image gains 1, whatever number of labels it shares. Tie block: images that share the distance of rank k."
)
RADIUS_ABOUT = (
    f"Within radius {EMPTY_BALL_RADIUS}, a query without an image there counting as 0. RAMAP: the mean of the "
    "precision within a radius over all radii."
)
_STORED = "stored order"
_MISSING = "–"


def difference_about(evaluation: Evaluation) -> str:
    """What the table of differences to compared encoders shows."""
    return f"mAP@{evaluation.k} of {evaluation.name} minus the other encoder’s, over the same queries."


def stored_order_about(evaluation: Evaluation) -> str:
    """What the column of the stored order is; empty without it."""
    if not _has_stored_order(evaluation):
        return ""
    return "Stored order: mAP with equal distances in the order of ids, as sorting a stored database stably gives."


def detail_head(evaluation: Evaluation) -> list[str]:
    """Names of the cells of `detail_cells`."""
    k = evaluation.k
    stored = [_STORED] if _has_stored_order(evaluation) else []
    names = ["ties worst", "ties best", *stored, "min(k, R)", "R", "mAP@ALL", f"NDCG@{k}", f"P@{k}", f"R@{k}"]
    return [*names, "median tie block"]


def detail_cells(evaluation: Evaluation, one: SeriesMetrics) -> list[str]:
    """Every metric of one series that does not ask for a radius."""
    stored = [_number(one.map_stored_order)] if _has_stored_order(evaluation) else []
    bounds = [_number(value) for value in (one.map_worst, one.map_best)]
    others = (one.map_at_k_min_kr, one.map_at_k_r, one.map_all, one.ndcg_at_k, one.precision_at_k, one.recall_at_k)
    return [*bounds, *stored, *(_number(value) for value in others), f"{one.median_tie_block:,.0f}"]


def radius_head() -> list[str]:
    """Names of the cells of `radius_cells`."""
    names = ("mAP", "P", "R")
    return [*(f"{name}@H≤{EMPTY_BALL_RADIUS}" for name in names), "empty balls", "RAMAP"]


def radius_cells(_: Evaluation, one: SeriesMetrics) -> list[str]:
    """Metrics by radius of one series whose distances are Hamming's."""
    by_radius = (one.map_by_radius, one.precision_by_radius, one.recall_by_radius)
    empty = _MISSING if one.empty_ball_share is None else f"{one.empty_ball_share:.1%}"
    return [*(f"{values[EMPTY_BALL_RADIUS]:.4f}" for values in by_radius), empty, _number(one.ramap)]


def health_head() -> list[str]:
    """Names of the cells of `health_cells`."""
    return [
        "distinct",
        "imbalance",
        "worst bit",
        "constant",
        "entropy",
        "MI mean",
        "MI max",
        "shared codes",
        "largest block",
        "collisions",
    ]


def health_cells(one: Health) -> list[str]:
    """The health of the codes at one length."""
    return [
        f"{one.distinct_share:.2%}",
        f"{one.mean_imbalance:.3f}",
        f"{one.least_balanced:.3f}",
        str(one.constant_bits),
        f"{one.mean_entropy:.3f}",
        f"{one.mean_mutual_information:.4f}",
        f"{one.max_mutual_information:.4f}",
        f"{one.shared_code_share:.1%}",
        f"{one.largest_tie_block:,}",
        f"{one.collision_share:.1%}" if one.collision_pairs else _MISSING,
    ]


def sampling_about(evaluation: Evaluation) -> str:
    """What of the health is of a sample; empty if nothing is."""
    lines = []
    if lengths := [str(one.bits) for one in evaluation.health if one.tie_blocks_sampled]:
        lines.append(f"Tie blocks at {', '.join(lengths)} bits: of a random million of the distinct codes.")
    if lengths := [str(one.bits) for one in evaluation.health if one.collisions_sampled]:
        lines.append(f"Collisions at {', '.join(lengths)} bits: of a random choice of codes with about 65,000 images.")
    return " ".join(lines)


def _has_stored_order(evaluation: Evaluation) -> bool:
    return any(one.map_stored_order is not None for one in evaluation.series)


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.4f}"
