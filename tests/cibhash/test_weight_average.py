"""The running average of weights: its formula step by step, and that it takes their place only briefly."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from cibhash.weight_average import AVERAGE, LEARNED, follow, swapped_in, take_average, with_average


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _shift(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for value in model.state_dict().values():
            value += torch.randint(1, 5, value.shape, generator=generator).to(value.dtype)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.998])
def test_the_average_follows_its_formula(decay: float) -> None:
    model, generator = _model(), torch.Generator().manual_seed(1)
    pair = with_average(model)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for steps_done in range(1, 40):
        _shift(model, generator)
        follow(pair, decay, steps_done)
        kept = min(decay, steps_done / (steps_done + 9))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = kept * expected[name] + (1 - kept) * value.double()
            else:
                expected[name] = value.double()
    for name, value in pair[AVERAGE].state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5, msg=name)
    if decay == 0.0:
        averages = pair[AVERAGE].state_dict()
        assert all(torch.equal(averages[name], value) for name, value in model.state_dict().items())


def test_what_learns_is_shared_and_its_average_does_not_learn() -> None:
    model = _model()
    pair = with_average(model)
    assert pair[LEARNED] is model
    assert not any(parameter.requires_grad for parameter in pair[AVERAGE].parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_swapping_in_is_undone_even_by_an_error() -> None:
    model = _model()
    pair = with_average(model)
    _shift(model, torch.Generator().manual_seed(2))
    learned = copy.deepcopy(model.state_dict())
    average = copy.deepcopy(pair[AVERAGE].state_dict())
    with contextlib.suppress(KeyError), swapped_in(pair):
        assert all(torch.equal(model.state_dict()[name], value) for name, value in average.items())
        raise KeyError
    assert all(torch.equal(model.state_dict()[name], value) for name, value in learned.items())
    take_average(pair)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in average.items())


def test_a_module_without_average_is_left_alone() -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    with swapped_in(model):
        take_average(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
