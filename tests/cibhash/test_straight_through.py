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
    assert sign_straight_through(torch.tensor([[torch.nan]])).isnan().all()


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
