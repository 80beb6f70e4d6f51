"""A look at held-out images: scores as they are defined, health of the codes, and alarms when codes collapse."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.training.monitor import HeldOut, Monitor
from tests import oracles

_FEATURES, _BITS = 6, 16


def _held_out(num_images: int, labeled: bool = True, seed: int = 0) -> HeldOut:
    """Groups of three alike, and views close to their image."""
    draws = torch.Generator().manual_seed(seed)
    plain = torch.randn(-(-num_images // 3), _FEATURES, generator=draws).repeat_interleave(3, 0)[:num_images]
    plain = plain + 0.3 * torch.randn(plain.shape, generator=draws)
    a, b = (plain + 0.3 * torch.randn(plain.shape, generator=draws) for _ in range(2))
    labels = np.arange(num_images)[:, None] % 4 == np.arange(4) if labeled else None
    return HeldOut((plain, a, b), labels)


def _project(seed: int = 1) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(_FEATURES, _BITS, generator=torch.Generator().manual_seed(seed))
    return lambda features: features @ weight


def _monitor(held_out: HeldOut, prefixes: tuple[int, ...] = (8, 16), batch_size: int = 8) -> Monitor:
    return Monitor(held_out, None, prefixes=prefixes, temperature=0.4, batch_size=batch_size)


def _bits(features: Tensor, bits: int, seed: int = 1) -> list[list[int]]:
    return [[int(value > 0) for value in row[:bits]] for row in _project(seed)(features).tolist()]


def _slow_sep10(held_out: HeldOut, bits: int) -> float:
    """(mean distance of all pairs - mean distance to the 10 nearest by centered cosine) / standard deviation."""
    features = held_out.views[0].double().numpy()
    features = features - features.mean(0)
    codes, size = _bits(held_out.views[0], bits), len(features)

    def distance(i: int, j: int) -> int:
        return sum(a != b for a, b in zip(codes[i], codes[j], strict=True))

    pairs = [distance(i, j) for i in range(size) for j in range(size) if i != j]
    near = []
    for i in range(size):
        cosines = {
            j: features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in range(size)
            if j != i
        }
        near += [distance(i, j) for j in sorted(cosines, key=lambda j: -cosines[j])[:10]]
    return float((np.mean(pairs) - np.mean(near)) / np.std(pairs))


def _slow_nt_xent(held_out: HeldOut, bits: int, batch_size: int) -> float:
    """The contrastive loss of the +-1 codes, a batch at a time, full batches only."""
    a, b = (2 * torch.tensor(_bits(view, bits)).double() - 1 for view in held_out.views[1:])
    starts = range(0, len(a) - batch_size + 1, batch_size)
    return float(np.mean([oracles.nt_xent(a[s : s + batch_size], b[s : s + batch_size], 0.4) for s in starts]))


@pytest.mark.parametrize("num_images", [21, 40])
def test_a_look_gives_the_means_over_code_lengths_of_the_defined_scores(num_images: int) -> None:
    held_out = _held_out(num_images, labeled=False)
    look = _monitor(held_out).look(_project(), step=7)
    expected = {bits: (_slow_sep10(held_out, bits), _slow_nt_xent(held_out, bits, 8)) for bits in (8, 16)}
    for bits, (sep10, nt_xent) in expected.items():
        assert look.row[f"sep10_{bits}"] == pytest.approx(sep10)
        assert look.row[f"nt_xent_{bits}"] == pytest.approx(nt_xent)
    mean = np.mean(list(expected.values()), axis=0)
    assert (look.scores.sep10, look.scores.nt_xent) == pytest.approx(tuple(mean))
    assert (look.row["sep10"], look.row["nt_xent"]) == pytest.approx(tuple(mean))
    assert (look.row["kind"], look.row["step"]) == ("look", 7)
    assert math.isnan(look.scores.oracle)
    assert not [name for name in look.row if name.startswith("oracle")]
    agree = np.mean(np.array(_bits(held_out.views[1], 16)) == np.array(_bits(held_out.views[2], 16)))
    assert look.row["alignment"] == pytest.approx(agree)
    ones = np.array(_bits(held_out.views[1], 16)).mean(0)
    assert look.row["balance_deviation"] == pytest.approx(np.abs(ones - 0.5).mean())
    assert look.alarms == ()
    assert "alarms" not in look.row


def test_labels_give_the_oracle_and_change_nothing_else() -> None:
    """Codes that are the label rank all images of it first; others do not."""
    held_out, unlabeled = _held_out(40), _held_out(40, labeled=False)
    look, without = (_monitor(images).look(_project(), step=7) for images in (held_out, unlabeled))
    assert 0 < look.scores.oracle < 1
    assert look.row["oracle"] == look.scores.oracle
    assert look.scores.sep10 == without.scores.sep10
    assert {k: v for k, v in look.row.items() if not k.startswith("oracle")} == without.row

    labels = held_out.labels
    assert labels is not None
    told = HeldOut((torch.from_numpy(labels).float(),) * 3, labels)
    monitor = Monitor(told, None, prefixes=(8,), temperature=0.4, batch_size=8)
    assert monitor.look(lambda x: torch.cat([x, x], 1) - 0.5, step=1).scores.oracle == 1


def test_images_are_looked_at_with_the_backbone_of_the_moment() -> None:
    """Pixels go through `features` in blocks; what it gives decides the neighbors too."""
    learned, blocks = _held_out(600), []
    weight = torch.tensor([0.01] * _FEATURES)

    def backbone(pixels: Tensor) -> Tensor:
        blocks.append(len(pixels))
        return pixels.float() * weight

    a, b, c = (view * 100 for view in learned.views)
    monitor = Monitor(HeldOut((a, b, c), learned.labels), backbone, prefixes=(8,), temperature=0.4, batch_size=8)
    sep10s = []
    for step, factors in enumerate(([0.01] * _FEATURES, [0.01, 1.0, 1.0, 0.0, 0.01, 0.01])):
        weight.copy_(torch.tensor(factors))
        found = monitor.look(_project(), step=step)
        now = HeldOut((a * weight, b * weight, c * weight), learned.labels)
        assert found == Monitor(now, None, prefixes=(8,), temperature=0.4, batch_size=8).look(_project(), step=step)
        sep10s.append(found.scores.sep10)
    assert sep10s[0] != sep10s[1]
    assert sum(blocks) == 2 * 3 * 600
    assert max(blocks) <= 256


@pytest.mark.parametrize("step", [99, 100])
def test_collapsed_codes_raise_alarms_of_every_length_after_the_warm_up(step: int) -> None:
    """The first 8 bits are constant, the others not: only the short code has collapsed."""
    held_out = _held_out(40)
    weight = _project()

    def half(features: Tensor) -> Tensor:
        logits = weight(features)
        return torch.cat([torch.ones_like(logits[:, :8]), logits[:, 8:]], 1)

    def constant(features: Tensor) -> Tensor:
        return torch.ones(len(features), _BITS)

    look = _monitor(held_out).look(half, step=step)
    collapsed = _monitor(held_out).look(constant, step=step)
    if step < 100:
        assert look.alarms == collapsed.alarms == ()
        assert "alarms" not in collapsed.row
    else:
        assert any("8 of 8 bits are dead" in alarm and alarm.endswith("(8 bits)") for alarm in look.alarms)
        assert not any(alarm.endswith("(16 bits)") for alarm in look.alarms)
        assert look.row["alarms"] == list(look.alarms)
        for bits in (8, 16):
            assert any(f"{bits} of {bits} bits are dead" in alarm for alarm in collapsed.alarms)
            assert any(f"tie block 1.000 is above 0.5 ({bits} bits)" in alarm for alarm in collapsed.alarms)
    assert math.isnan(collapsed.scores.sep10)
    assert "sep10" not in collapsed.row


def test_few_images_are_enough_for_a_look() -> None:
    held_out = _held_out(3)
    look = _monitor(held_out, batch_size=64).look(_project(), step=1)
    assert math.isfinite(look.scores.nt_xent)
    assert look.row["nt_xent_16"] == pytest.approx(_slow_nt_xent(held_out, 16, 3))
