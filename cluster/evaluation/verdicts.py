"""The sentence on whether an encoder is better than the baselines.

Knows nothing of how the differences came about.
"""

from cluster.evaluation.results import Margin


def verdict(
    margins: tuple[Margin, ...], name: str = "", *, over_hyperplanes: tuple[Margin, ...] = ()
) -> tuple[bool | None, str]:
    """Whether an encoder's mAP is above the baselines' at every length compared, and the sentence that says so.

    Args:
        margins: Over ITQ.
        name: Of a compared encoder; empty: the main one.
        over_hyperplanes: Over random hyperplanes, which are mentioned only where they are not beaten.
    """
    who, poor = name or "THIS ENCODER", _lost(over_hyperplanes)
    warning = f"{who} DOES NOT BEAT RANDOM HYPERPLANES: mAP {poor}. Something is wrong with it." if poor else ""
    if not margins:
        return (False if poor else None), warning
    if lost := _lost(margins):
        advice = "" if name else " PCA-ITQ on the same features is the better choice."
        return False, f"{who} DOES NOT BEAT ITQ: mAP {lost}.{advice} {warning}".rstrip()
    least = min(margins, key=lambda margin: margin.difference)
    unsure = [str(margin.bits) for margin in margins if margin.interval.low <= 0]
    doubt = f"; within the noise of the queries at {', '.join(unsure)} bits" if unsure else ""
    beats = f"{name} beats" if name else "Beats"
    sentence = f"{beats} ITQ at every length, by at least {least.difference:.4f} mAP ({least.bits} bits){doubt}."
    return not poor, f"{sentence} {warning}".rstrip()


def _lost(margins: tuple[Margin, ...]) -> str:
    """The lengths at which there is no gain, as text."""
    return ", ".join(f"{margin.difference:+.4f} at {margin.bits} bits" for margin in margins if margin.difference <= 0)
