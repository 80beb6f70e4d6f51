import pytest
import torch

from cibhash.straight_through import bernoulli_straight_through, sign_straight_through


def test_sign_is_exact_and_passes_the_gradient_on():
    p = torch.tensor([[0.0, 0.3, 0.5, 0.5000001, 0.9, 1.0]], requires_grad=True)
    codes = sign_straight_through(p)
    assert codes.tolist() == [[-1, -1, -1, 1, 1, 1]]
    gradient = torch.arange(6.0).reshape(1, 6)
    codes.backward(gradient)
    torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0)


def test_nan_probability_gives_nan_code():
    p = torch.tensor([[torch.nan, 1.0]])
    for codes in (sign_straight_through(p), bernoulli_straight_through(p, torch.Generator().manual_seed(0))):
        assert codes.isnan().tolist() == [[True, False]]
        assert codes[0, 1] == 1


def test_bernoulli_draws_with_probability_p_and_passes_the_gradient_on():
    p = torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0], dtype=torch.float64).repeat(40_000, 1).requires_grad_()
    codes = bernoulli_straight_through(p, torch.Generator().manual_seed(0))
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    ones = (codes > 0).double().mean(dim=0)
    assert ones[0] == 0
    assert ones[-1] == 1
    # Five standard errors of the mean of 40,000 draws.
    torch.testing.assert_close(ones, p[0].detach(), rtol=0, atol=5 * 0.5 / 200)
    gradient = torch.rand(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codes.backward(gradient)
    torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0)


def test_bernoulli_depends_on_its_generator_alone():
    p = torch.full((8, 16), 0.5)
    first = bernoulli_straight_through(p, torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    again = bernoulli_straight_through(p, torch.Generator().manual_seed(3))
    other = bernoulli_straight_through(p, torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bits_are_drawn_apart():
    """Of images, of views and of bits alike: hardly correlated with what comes next along any dimension."""
    codes = bernoulli_straight_through(torch.full((400, 2, 50), 0.5), torch.Generator().manual_seed(0))
    for dim in range(3):
        length = codes.shape[dim] - 1
        agreement = (codes.narrow(dim, 0, length) * codes.narrow(dim, 1, length)).mean()
        assert abs(agreement) < 5 / (40_000 / 2) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 8), (12, 2, 8)])
@pytest.mark.parametrize("parts", [(12,), (6, 6), (3, 3, 3, 3), (1, 4, 7)])
def test_draws_of_some_rows_are_those_of_the_larger_batch(dtype, shape, parts):
    p = torch.rand(shape, generator=torch.Generator().manual_seed(5)).to(dtype).requires_grad_()
    uniform = torch.rand(
        shape, generator=torch.Generator().manual_seed(2), dtype=torch.promote_types(dtype, torch.float32)
    )
    expected = [1.0 if u < q else -1.0 for u, q in zip(uniform.flatten().tolist(), p.flatten().tolist(), strict=True)]
    codes, row = [], 0
    for count in parts:
        own, generator = p[row : row + count], torch.Generator().manual_seed(2)
        codes.append(bernoulli_straight_through(own, generator, first_row=row, num_rows=12))
        row += count
    assert codes[0].dtype == dtype
    assert torch.cat(codes).flatten().tolist() == expected
    torch.cat(codes).sum().backward()
    assert p.grad.eq(1).all()


def test_half_precision_hits_small_probabilities():
    """A uniform number of 8 bits would be 0 once in 256 draws, and below 1/10,000 as often."""
    p = torch.full((100_000, 8), 1e-4, dtype=torch.bfloat16)
    ones = (bernoulli_straight_through(p, torch.Generator().manual_seed(0)) > 0).double().mean()
    assert abs(ones - 1e-4) < 5 * (1e-4 / 800_000) ** 0.5
