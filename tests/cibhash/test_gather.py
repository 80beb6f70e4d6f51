import pytest
import torch

from cibhash.gather import all_gather_with_gradient, rank, world_size
from tests.gloo import run_gloo


def test_without_a_group_everything_is_rank_0_of_1():
    assert (rank(), world_size()) == (0, 1)
    x = torch.rand(3, 2)
    assert all_gather_with_gradient(x) is x


def test_scalar_is_refused():
    with pytest.raises(ValueError, match="scalar"):
        all_gather_with_gradient(torch.tensor(1.0))


def gather_and_weigh(shape):
    x = torch.full(shape, float(rank()), dtype=torch.float64, requires_grad=True)
    # Not contiguous, forward and backward.
    gathered = all_gather_with_gradient(x.transpose(1, 2))
    weights = torch.arange(gathered.numel(), dtype=torch.float64).reshape(gathered.shape) * (rank() + 1)
    (gathered * weights).sum().backward()
    ids = all_gather_with_gradient(torch.tensor([rank(), rank() + 10]))
    return rank(), world_size(), gathered.detach(), x.grad, ids


def test_rows_come_in_rank_order_and_gradients_sum_over_ranks():
    num_ranks = 3
    shape = (2, 3, 4)
    transposed = (num_ranks * 2, 4, 3)
    weights = torch.arange(num_ranks * 24, dtype=torch.float64).reshape(transposed)
    for expected_rank, answer in enumerate(run_gloo(num_ranks, gather_and_weigh, shape)):
        own_rank, size, gathered, gradient, ids = answer
        assert (own_rank, size) == (expected_rank, num_ranks)
        for row in range(num_ranks * 2):
            assert torch.equal(gathered[row], torch.full((4, 3), float(row // 2), dtype=torch.float64))
        # Rank w weighs every entry by (w + 1) times its position: the sum over ranks has factor 1 + 2 + ...
        factor = num_ranks * (num_ranks + 1) // 2
        own = weights[2 * own_rank : 2 * own_rank + 2].transpose(1, 2) * factor
        torch.testing.assert_close(gradient, own, rtol=0, atol=0)
        assert ids.tolist() == [entry for other in range(num_ranks) for entry in (other, other + 10)]


def fail_on_rank_1():
    if rank() == 1:
        raise KeyError("planted")
    return rank()


def test_error_of_a_rank_reaches_the_caller():
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 raised.*planted"):
        run_gloo(2, fail_on_rank_1)
