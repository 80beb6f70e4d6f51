import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cibhash.gather import rank, world_size
from cibhash.objective import bernoulli_kl, cibhash_loss, nt_xent
from cibhash.straight_through import sign_straight_through
from tests import oracles
from tests.gloo import run_gloo


def probabilities(seed, num_images, bits, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(num_images, bits, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize(("num_images", "bits", "temperature"), [(1, 8, 0.3), (2, 16, 0.3), (5, 24, 0.2), (9, 64, 1.0)])
@pytest.mark.parametrize("binary", [True, False])
def test_nt_xent_equals_the_released_code_in_value_and_gradient(num_images, bits, temperature, binary):
    views = probabilities(num_images, num_images, bits)
    codes = [sign_straight_through(p) if binary else p for p in views]
    ours = nt_xent(*codes, temperature)
    released = oracles.nt_xent(*codes, temperature)
    torch.testing.assert_close(ours, released, rtol=0, atol=1e-12)
    for a, b in zip(gradients(ours, views), gradients(released, views), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_nt_xent_by_hand():
    # Two images, codes at right angles, views equal: similarities 1/t to the positive, 0 to the two negatives.
    codes = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    expected = -math.log(math.exp(2.0) / (math.exp(2.0) + 2))
    assert nt_xent(codes, codes, 0.5).item() == pytest.approx(expected, abs=1e-14)


def test_dividing_the_product_by_bits_has_the_value_but_not_the_gradient():
    views = probabilities(3, 6, 16)
    codes = [sign_straight_through(p) for p in views]
    z = torch.cat(codes)
    logits = (z @ z.T / 16 / 0.3).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    trap = nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    ours = nt_xent(*codes, 0.3)
    torch.testing.assert_close(ours, trap, rtol=0, atol=1e-12)
    # A cosine does not change with the length of a code, so its gradient has no part along the code.
    along = [(torch.cat(gradients(loss, views)) * z.detach()).sum(dim=1).abs() for loss in (ours, trap)]
    assert along[0].max() < 1e-12
    assert along[1].max() > 0.1


def test_one_image_has_no_negatives_and_no_loss():
    views = probabilities(0, 1, 8)
    loss = nt_xent(*views, 0.3)
    assert loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(loss, views))


def test_bernoulli_kl_equals_the_formula():
    p, q = (view.detach() for view in probabilities(4, 7, 24))
    p[0, :3] = torch.tensor([0.0, 1.0, 0.5])
    q[0, :3] = torch.tensor([1.0, 0.0, 0.5])
    assert bernoulli_kl(p, q).item() == pytest.approx(oracles.bernoulli_kl(p.tolist(), q.tolist()), rel=1e-12)
    assert bernoulli_kl(p, p).item() == 0
    assert bernoulli_kl(torch.full((1, 2), 0.5), torch.full((1, 2), 0.25)).item() == pytest.approx(
        2 * (0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)), rel=1e-6
    )


def test_loss_is_contrastive_plus_beta_kl():
    p_a, p_b = probabilities(5, 6, 16)
    terms = cibhash_loss(p_a, p_b, temperature=0.4, beta=0.02)
    contrastive = oracles.nt_xent(sign_straight_through(p_a), sign_straight_through(p_b), 0.4)
    kl = (oracles.bernoulli_kl(p_a.tolist(), p_b.tolist()) + oracles.bernoulli_kl(p_b.tolist(), p_a.tolist())) / 2
    assert terms.contrastive.item() == pytest.approx(contrastive.item(), abs=1e-12)
    assert terms.kl.item() == pytest.approx(kl, rel=1e-12)
    assert terms.total.item() == pytest.approx(contrastive.item() + 0.02 * kl, abs=1e-12)


def test_kl_gradient_stops_at_the_second_argument():
    p_a, p_b = probabilities(6, 4, 8)
    epsilon = 1e-8
    stopped = gradients(cibhash_loss(p_a, p_b).kl, (p_a, p_b))
    for own, other, gradient in ((p_a, p_b, stopped[0]), (p_b, p_a, stopped[1])):
        p, q = own.detach(), other.detach()
        by_hand = torch.log(p + epsilon) + p / (p + epsilon) - torch.log(q + epsilon)
        by_hand -= torch.log(1 - p + epsilon) + (1 - p) / (1 - p + epsilon) - torch.log(1 - q + epsilon)
        torch.testing.assert_close(gradient, by_hand / (2 * 4), rtol=0, atol=1e-12)
    free = gradients(cibhash_loss(p_a, p_b, kl_stopgrad=False).kl, (p_a, p_b))
    symmetric = (bernoulli_kl(p_a, p_b) + bernoulli_kl(p_b, p_a)) / 2
    for a, b, c in zip(free, gradients(symmetric, (p_a, p_b)), stopped, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert not torch.allclose(a, c)


def test_prefixes_average_the_terms_of_each_length():
    p_a, p_b = probabilities(7, 5, 32)
    nested = cibhash_loss(p_a, p_b, prefixes=(8, 16, 32))
    single = [cibhash_loss(p_a[:, :length], p_b[:, :length]) for length in (8, 16, 32)]
    for name in ("total", "contrastive", "kl"):
        mean = sum(getattr(terms, name) for terms in single) / 3
        torch.testing.assert_close(getattr(nested, name), mean, rtol=0, atol=1e-12)
    for a, b in zip(cibhash_loss(p_a, p_b, prefixes=(32,)), cibhash_loss(p_a, p_b), strict=True):
        assert torch.equal(a, b)


def drawn_codes(p_a, p_b, seed):
    """Codes of both views from one block of uniform numbers, image by image, bit by bit; gradient straight through."""
    uniform = torch.rand(len(p_a), 2, p_a.shape[1], generator=torch.Generator().manual_seed(seed), dtype=p_a.dtype)
    views = []
    for view, p in enumerate((p_a, p_b)):
        rows = [
            [1.0 if uniform[image, view, bit] < p[image, bit] else -1.0 for bit in range(p.shape[1])]
            for image in range(len(p))
        ]
        views.append(torch.tensor(rows, dtype=p.dtype) + (p - p.detach()))
    return views


def test_bernoulli_codes_are_drawn_for_both_views_of_every_image():
    """In value and gradient, with prefixes: the draws of a bit are the same whatever prefix it is in."""
    p_a, p_b = probabilities(12, 6, 16)
    generator = torch.Generator().manual_seed(4)
    terms = cibhash_loss(p_a, p_b, prefixes=(8, 16), code_sampling="bernoulli", generator=generator)
    codes_a, codes_b = drawn_codes(p_a, p_b, seed=4)
    expected = sum(oracles.nt_xent(codes_a[:, :length], codes_b[:, :length], 0.3) for length in (8, 16)) / 2
    torch.testing.assert_close(terms.contrastive, expected, rtol=0, atol=1e-12)
    for ours, by_hand in zip(gradients(terms.contrastive, (p_a, p_b)), gradients(expected, (p_a, p_b)), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-12)
    assert not torch.equal(codes_a, sign_straight_through(p_a))


def test_relaxed_codes_are_the_probabilities_from_minus_to_plus_one():
    p_a, p_b = probabilities(13, 6, 16)
    terms = cibhash_loss(p_a, p_b, prefixes=(8, 16), beta=0.02, code_sampling="relaxed")
    codes = [2 * p - 1 for p in (p_a, p_b)]
    expected = sum(oracles.nt_xent(*(c[:, :length] for c in codes), 0.3) for length in (8, 16)) / 2
    torch.testing.assert_close(terms.contrastive, expected, rtol=0, atol=1e-12)
    for ours, by_hand in zip(gradients(terms.contrastive, (p_a, p_b)), gradients(expected, (p_a, p_b)), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-12)
    thresholded = cibhash_loss(p_a, p_b, prefixes=(8, 16), beta=0.02)
    assert terms.kl.item() == pytest.approx(thresholded.kl.item(), abs=1e-12)
    assert abs(terms.contrastive.item() - thresholded.contrastive.item()) > 0.01


@pytest.mark.parametrize("code_sampling", ["threshold", "bernoulli", "relaxed"])
def test_probabilities_that_are_not_finite_show_in_the_loss(code_sampling):
    p_a, p_b = probabilities(14, 4, 8)
    with torch.no_grad():
        p_a[2, 3] = torch.nan
    terms = cibhash_loss(p_a, p_b, code_sampling=code_sampling, generator=torch.Generator())
    assert all(term.isnan() for term in terms)


def test_bernoulli_codes_come_from_the_generator():
    p_a, p_b = probabilities(8, 6, 16)
    losses = [
        cibhash_loss(p_a, p_b, code_sampling="bernoulli", generator=torch.Generator().manual_seed(seed)).total.item()
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_probabilities_are_computed_in_float32(dtype):
    p_a, p_b = (p.detach().to(dtype) for p in probabilities(9, 8, 32))
    p_a[0, 0], p_b[0, 0] = 1.0, 0.0
    terms = cibhash_loss(p_a, p_b)
    expected = cibhash_loss(p_a.double(), p_b.double())
    for ours, exact in zip(terms, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_logits():
    views = [p.detach() for p in probabilities(10, 16, 64, torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = nt_xent(*views, 0.3)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, nt_xent(*views, 0.3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"prefixes": (8, 0)}, "prefix of 0 bits"),
        ({"prefixes": (8, 17)}, "prefix of 17 bits"),
        ({"code_sampling": "round"}, "'round', expected 'threshold', 'bernoulli' or 'relaxed'"),
        ({"code_sampling": "bernoulli"}, "generator"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        cibhash_loss(*probabilities(0, 3, 16), **settings)


@pytest.mark.parametrize(
    "shapes", [((3, 8), (4, 8)), ((3, 8), (3, 16)), ((3,), (3,)), ((0, 8), (0, 8)), ((2, 0), (2, 0))]
)
def test_wrong_shapes_are_named(shapes):
    a, b = (torch.rand(shape) for shape in shapes)
    for call in (lambda: nt_xent(a, b, 0.3), lambda: bernoulli_kl(a, b), lambda: cibhash_loss(a, b)):
        with pytest.raises(ValueError, match=r"shapes \("):
            call()


GLOBAL_BATCH, FEATURES, BITS = 8, 12, 32


def encoder_and_views(dtype):
    generator = torch.Generator().manual_seed(0)
    encoder = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, BITS), nn.Sigmoid()).to(dtype)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    views = torch.randn(2, GLOBAL_BATCH, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return encoder, views


def train_step(encoder, views, **settings):
    """Loss terms and parameter gradients of one step on the views (2, N, D)."""
    p_a, p_b = encoder(views.flatten(0, 1)).chunk(2)
    terms = cibhash_loss(p_a, p_b, beta=0.1, **settings)
    encoder.zero_grad()
    terms.total.backward()
    return [term.item() for term in terms], [parameter.grad.clone() for parameter in encoder.parameters()]


CASES = [
    (dtype, code_sampling, prefixes, kl_stopgrad)
    for dtype in (torch.float64, torch.float32)
    for code_sampling, prefixes, kl_stopgrad in (
        ("threshold", (), True),
        ("threshold", (8, 16, 32), True),
        ("threshold", (16,), False),
        ("bernoulli", (), False),
        ("bernoulli", (8, 16, 32), True),
        ("relaxed", (8, 16, 32), True),
        ("relaxed", (), False),
    )
]


def generator():
    return torch.Generator().manual_seed(21)


def distributed_steps():
    answers = []
    for dtype, code_sampling, prefixes, kl_stopgrad in CASES:
        encoder, views = encoder_and_views(dtype)
        share = GLOBAL_BATCH // world_size()
        own = views[:, rank() * share : (rank() + 1) * share]
        settings = {"code_sampling": code_sampling, "prefixes": prefixes, "kl_stopgrad": kl_stopgrad}
        parallel = DistributedDataParallel(encoder)
        answers.append(
            [train_step(parallel, own, gather=gather, generator=generator(), **settings) for gather in (True, False)]
        )
    return answers


def step_with_local_negatives(case, num_ranks):
    """The definition: the mean over ranks of the loss of each rank's images alone; draws are those of the batch."""
    dtype, code_sampling, prefixes, kl_stopgrad = case
    encoder, views = encoder_and_views(dtype)
    p_a, p_b = encoder(views.flatten(0, 1)).chunk(2)
    codes_a, codes_b = {
        "threshold": lambda: [sign_straight_through(p) for p in (p_a, p_b)],
        "bernoulli": lambda: drawn_codes(p_a, p_b, seed=21),
        "relaxed": lambda: [2 * p - 1 for p in (p_a, p_b)],
    }[code_sampling]()
    priors = [p.detach() if kl_stopgrad else p for p in (p_a, p_b)]
    contrastive, kl = [], []
    for length in prefixes or (BITS,):
        for rows in torch.arange(GLOBAL_BATCH).chunk(num_ranks):
            contrastive.append(oracles.nt_xent(codes_a[rows, :length], codes_b[rows, :length], 0.3))
            kl.append(bernoulli_kl(p_a[rows, :length], priors[1][rows, :length]) / 2)
            kl[-1] = kl[-1] + bernoulli_kl(p_b[rows, :length], priors[0][rows, :length]) / 2
    mean_contrastive, mean_kl = (torch.stack(values).mean() for values in (contrastive, kl))
    total = mean_contrastive + 0.1 * mean_kl
    total.backward()
    terms = [total.item(), mean_contrastive.item(), mean_kl.item()]
    return terms, [parameter.grad for parameter in encoder.parameters()]


def assert_same_step(by_rank, expected, tolerance):
    """The mean of the ranks' terms, and on every rank the gradients."""
    terms, gradient = expected
    for index in range(3):
        mean = math.fsum(rank_terms[index] for rank_terms, _ in by_rank) / len(by_rank)
        assert mean == pytest.approx(terms[index], abs=tolerance)
    for _, rank_gradient in by_rank:
        for ours, by_hand in zip(rank_gradient, gradient, strict=True):
            torch.testing.assert_close(ours, by_hand, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_under_ddp_equal_one_process_with_the_global_batch(num_ranks):
    """With gathered codes; with those of each rank alone they equal the definition of that, and differ from these."""
    by_rank = run_gloo(num_ranks, distributed_steps)
    for number, case in enumerate(CASES):
        dtype, code_sampling, prefixes, kl_stopgrad = case
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        encoder, views = encoder_and_views(dtype)
        settings = {"code_sampling": code_sampling, "prefixes": prefixes, "kl_stopgrad": kl_stopgrad}
        expected = train_step(encoder, views, generator=generator(), **settings)
        assert_same_step([answers[number][0] for answers in by_rank], expected, tolerance)
        local = [answers[number][1] for answers in by_rank]
        assert_same_step(local, step_with_local_negatives(case, num_ranks), tolerance)
        assert max((a - b).abs().max() for a, b in zip(local[0][1], expected[1], strict=True)) > 1e-3
