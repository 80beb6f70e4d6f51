"""What to do about a new encoder, in two plain sentences.

Knows nothing of how the numbers came about.
"""

from cluster.drift.findings import Score


def of_quality(new_minus_old: Score | None, k: int) -> str:
    """Whether the new encoder finds better than the old one, after everything is encoded anew."""
    if new_minus_old is None:
        return "The images have no labels, so which encoder finds better was not measured."
    low, high = new_minus_old.interval.low, new_minus_old.interval.high
    by = f"{new_minus_old.mean:+.4f} mAP@{k}, {low:+.4f} to {high:+.4f}"
    if low > 0:
        return f"The new encoder finds better ({by})."
    if high < 0:
        return f"The new encoder finds worse ({by})."
    return f"No clear difference between the encoders ({by})."


def may_mix(unchanged: float, mixed_minus_old: Score | None, overlap_mixed: Score, tolerance: float) -> bool:
    """Whether new codes may stand among old ones: what that costs is surely within the tolerance.

    Args:
        unchanged: Share of the images whose code is the same.
        mixed_minus_old: Change of mAP where only queries are new; None without labels.
        overlap_mixed: Share of the old neighbors that new queries find; decides without labels.
        tolerance: Of either.
    """
    if unchanged == 1.0:
        return True
    if mixed_minus_old is not None:
        return mixed_minus_old.interval.low >= -tolerance
    return overlap_mixed.interval.low >= 1.0 - tolerance


def of_mixing(mixes: bool, unchanged: float, mixed_minus_old: Score | None, overlap_mixed: Score, k: int) -> str:
    """Whether everything must be encoded anew before a switch, and why."""
    if unchanged == 1.0:
        return "All codes are the same: nothing has to be encoded anew."
    if mixed_minus_old is not None:
        what = f"new queries among old codes: {mixed_minus_old.mean:+.4f} mAP@{k}"
    else:
        what = f"new queries find {overlap_mixed.mean:.1%} of the {k} nearest that old ones find"
    if mixes:
        return f"New codes may stand among old ones ({what})."
    return f"Encode everything anew before you switch ({what})."
