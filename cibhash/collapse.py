"""Alarms for codes that collapse: what the statistics of a held-out slice, or of one training batch, may not fall to.

Knows nothing of training and of what an alarm leads to. Shapes: N images, B bits. The limits lie far from healthy
codes, not close to the worst codes that training has come back from: a backbone trained from scratch starts near
collapse (a small convnet on digits: 13 of 16 bits dead, entropy 0.05, and 0.9 after 45 steps), so nothing is said
during the first steps.
"""

from dataclasses import dataclass, fields

from cibhash.code_health import CodeHealth


@dataclass(frozen=True)
class Thresholds:
    """Limits of the alarms. Beside each: codes of an untrained head on frozen features, and of a short healthy run.

    These were 8 to 128 bits of 1,000 CIFAR-10 photos, MobileNetV2 features at 96 pixels. A run of 8 bits that
    collapsed there kept one bit alive: 7 of 8 dead, entropy 0.08 to 0.12, 2 distinct codes.
    """

    min_bit_entropy: float = 0.1
    """Least mean entropy of a bit, in bits. Untrained 0.56 and more, trained 0.95."""
    max_dead_share: float = 0.5
    """Largest share of the bits that may be constant. Untrained 0.03, trained 0."""
    min_unique_share: float = 0.02
    """Least number of distinct codes, as a share of what is possible, min(N, 2^B). Untrained 0.27 at 8 bits, 0.49 and
    more at 16; trained 0.7 at 16 bits."""
    max_tie_block: float = 0.5
    """Largest share of the images that may have one code. Untrained at 8 bits, the poorest: 0.27."""
    max_mutual_information: float = 0.5
    """Largest mean mutual information of two bits, in bits: above it the bits repeat each other. Trained 0.05."""
    min_batch_minority: float = 0.01
    """Least share of a batch's bits that differ from the most frequent value of their position. Untrained 0.15 and
    more (from scratch 0.011), trained 0.39."""
    min_images: int = 16
    """Codes below which nothing is said: among few, equal bits are chance."""
    warmup_steps: int = 100
    """Optimizer steps before which nothing is said."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.type is float and not 0 <= value <= 1:
                raise ValueError(f"{limit.name} is {value}, expected 0 to 1")
            if limit.type is int and value < 0:
                raise ValueError(f"{limit.name} is {value}, expected at least 0")


def collapse_signals(health: CodeHealth, thresholds: Thresholds, *, step: int | None = None) -> tuple[str, ...]:
    """One readable line per alarm, each with its value and its limit; none for healthy codes.

    Args:
        health: Statistics of a held-out slice.
        thresholds: The limits.
        step: Optimizer steps taken so far; None for codes that are not from a run's beginning.
    """
    if not _is_telling(health.num_images, thresholds, step):
        return ()
    possible = min(health.num_images, 2**health.bits)
    distinct = round(health.unique_ratio * health.num_images)
    signals = (
        (
            health.bit_entropy < thresholds.min_bit_entropy,
            f"bit entropy {health.bit_entropy:.3f} is below {thresholds.min_bit_entropy:g}",
        ),
        (
            health.num_dead_bits > thresholds.max_dead_share * health.bits,
            f"{health.num_dead_bits} of {health.bits} bits are dead, above the share {thresholds.max_dead_share:g}",
        ),
        (
            distinct < thresholds.min_unique_share * possible,
            f"unique codes {distinct / possible:.3f} ({distinct:,} of {possible:,} possible) are below "
            f"{thresholds.min_unique_share:g}",
        ),
        (
            health.largest_tie_block > thresholds.max_tie_block,
            f"largest tie block {health.largest_tie_block:.3f} is above {thresholds.max_tie_block:g}",
        ),
        (
            health.mean_mutual_information > thresholds.max_mutual_information,
            f"mean mutual information of bits {health.mean_mutual_information:.3f} is above "
            f"{thresholds.max_mutual_information:g}",
        ),
    )
    return tuple(line for is_raised, line in signals if is_raised)


def batch_signals(
    minority: float, num_codes: int, thresholds: Thresholds, *, step: int | None = None
) -> tuple[str, ...]:
    """An alarm if the codes of a training batch are nearly identical; it costs nothing, so every step can ask.

    Args:
        minority: Mean over bits of how often, 0 to 0.5, a bit has its rarer value in the batch.
        num_codes: Of the batch, both views together.
        thresholds: The limits.
        step: Optimizer steps taken so far; None for codes that are not from a run's beginning.
    """
    if not _is_telling(num_codes, thresholds, step) or minority >= thresholds.min_batch_minority:
        return ()
    return (
        f"codes of a batch differ in {minority:.4f} of their bits from the most frequent value, below "
        f"{thresholds.min_batch_minority:g}",
    )


def _is_telling(num_codes: int, thresholds: Thresholds, step: int | None) -> bool:
    return num_codes >= thresholds.min_images and (step is None or step >= thresholds.warmup_steps)
