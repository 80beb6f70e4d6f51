import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from cibhash import hamming
from cibhash.discounts import discount_sum
from cibhash.metrics import from_histogram, precision_recall_by_rank
from cibhash.ties import harmonic_difference
from tests import oracles

SHARP = 1e-12


def small_cases(count, seed):
    """Random histograms of up to five groups and about ten items whose orders can all be listed."""
    rng = np.random.default_rng(seed)
    while count:
        total = rng.integers(0, 6, rng.integers(1, 6))
        relevant = rng.binomial(total, rng.choice([0.1, 0.4, 0.8]))
        if 0 < total.sum() <= 12 and oracles.num_orders(total, relevant) <= 3000:
            count -= 1
            yield total, relevant, int(rng.integers(1, total.sum() + 2))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_full_enumeration(seed):
    for total, relevant, k in small_cases(60, seed):
        metrics = from_histogram(total[None], relevant[None], k=k)
        mean, worst, best = oracles.enumerate_average_precision(total, relevant, k, "hashing")
        case = f"total={total} relevant={relevant} k={k}"
        assert metrics.map_at_k == pytest.approx(float(mean), abs=SHARP), case
        assert metrics.map_worst == pytest.approx(float(worst), abs=SHARP), case
        assert metrics.map_best == pytest.approx(float(best), abs=SHARP), case
        for name, value in (("min_kr", metrics.map_at_k_min_kr), ("r", metrics.map_at_k_r)):
            mean, _, _ = oracles.enumerate_average_precision(total, relevant, k, name)
            assert value == pytest.approx(float(mean), abs=SHARP), case


def test_one_large_straddling_group_equals_full_enumeration():
    # The number of relevant items inside the top k is open over a wide range here; more of them can lower AP.
    for before, relevant_before in ((0, 0), (1, 1), (3, 1), (2, 0)):
        for r in range(9):
            for m in range(1, 9):
                total, relevant, k = np.array([before, 8]), np.array([relevant_before, r]), before + m
                metrics = from_histogram(total[None], relevant[None], k=k)
                expected = oracles.enumerate_average_precision(total, relevant, k, "hashing")
                ours = (metrics.map_at_k, metrics.map_worst, metrics.map_best)
                assert ours == pytest.approx([float(value) for value in expected], abs=SHARP), (before, r, m)


def test_precision_and_recall_equal_full_enumeration():
    for total, relevant, k in small_cases(80, 9):
        metrics = from_histogram(total[None], relevant[None], k=k)
        hits = oracles.enumerate_hits(total, relevant, k)
        depth = min(k, int(total.sum()))
        recall = hits / int(relevant.sum()) if relevant.sum() else Fraction(0)
        assert metrics.precision_at_k == pytest.approx(float(hits / depth), abs=SHARP)
        assert metrics.recall_at_k == pytest.approx(float(recall), abs=SHARP)
        curve = precision_recall_by_rank(total[None], relevant[None], [k, 1])
        assert curve.precision[0] == pytest.approx(float(hits / depth), abs=SHARP)
        assert curve.recall[0] == pytest.approx(float(recall), abs=SHARP)
        assert curve.precision[1] == pytest.approx(float(oracles.enumerate_hits(total, relevant, 1)), abs=SHARP)


def test_metrics_of_the_whole_ranking_equal_full_enumeration():
    for total, relevant, k in small_cases(80, 21):
        case = f"total={total} relevant={relevant} k={k}"
        metrics = from_histogram(total[None], relevant[None], k=k)
        mean, _, _ = oracles.enumerate_average_precision(total, relevant, int(total.sum()), "r")
        assert metrics.map_all == pytest.approx(float(mean), abs=SHARP), case
        assert metrics.ndcg_at_k == pytest.approx(oracles.enumerate_ndcg(total, relevant, k), abs=SHARP), case
        assert metrics.per_query.num_relevant.tolist() == [relevant.sum()]


def test_metrics_by_radius_equal_full_enumeration_within_the_ball():
    for total, relevant, k in small_cases(60, 22):
        metrics = from_histogram(total[None], relevant[None], k=k)
        radii = range(len(total))
        precision = [oracles.precision_within(total, relevant, radius) for radius in radii]
        assert metrics.precision_by_radius == pytest.approx([float(value) for value in precision], abs=SHARP)
        assert metrics.ramap == pytest.approx(float(sum(precision) / len(total)), abs=SHARP)
        for radius in radii:
            ball = total[: radius + 1], relevant[: radius + 1]
            mean, _, _ = oracles.enumerate_average_precision(*ball, int(total.sum()), "hashing")
            assert metrics.map_by_radius[radius] == pytest.approx(float(mean), abs=SHARP)
            assert metrics.empty_ball_share[radius] == (not ball[0].sum())


def test_sums_of_discounts_equal_the_sum_also_beyond_the_table():
    ranks = np.arange(1, 3_000_001)
    sums = np.cumsum(1 / np.log2(ranks + 1.0).astype(np.longdouble))
    for count in (0, 1, 2, 1000, 65_535, 65_536, 65_537, 65_600, 200_000, 3_000_000):
        expected = float(sums[count - 1]) if count else 0.0
        assert discount_sum(count) == pytest.approx(expected, rel=1e-12), count
    assert discount_sum(np.array([[3, 10**9]])).shape == (1, 2)
    # The sum is ln 2 li(n + 1) and a remainder that hardly grows; li(10^9) = 50849234.957 and li(10^12) =
    # 37607950280.8 are in tables.
    remainder = discount_sum(10**9 - 1) - math.log(2) * 50849234.957
    assert discount_sum(10**12 - 1) - math.log(2) * 37607950280.805 == pytest.approx(remainder, abs=0.01)


def test_ndcg_agrees_with_random_orders():
    rng = np.random.default_rng(5)
    total = np.bincount(rng.binomial(16, 0.4, 4000), minlength=17)
    relevant = rng.binomial(total, np.linspace(0.6, 0.05, 17))
    for k in (10, 900, 4000):
        sample = []
        for _ in range(100):
            groups = [rng.permutation(np.arange(n) < r) for n, r in zip(total, relevant, strict=True)]
            sample.append(oracles.ndcg(np.concatenate(groups).astype(int).tolist(), k))
        error = 5 * np.std(sample) / math.sqrt(len(sample)) + 1e-9
        assert from_histogram(total[None], relevant[None], k=k).ndcg_at_k == pytest.approx(np.mean(sample), abs=error)


@pytest.mark.parametrize("k", [1, 50, 1000, 2500, 5000])
def test_average_precision_agrees_with_random_orders(k):
    rng = np.random.default_rng(k)
    total = np.bincount(rng.binomial(16, 0.4, 5000), minlength=17)
    relevant = rng.binomial(total, np.linspace(0.6, 0.05, 17))
    metrics = from_histogram(total[None], relevant[None], k=k)
    sample = oracles.sample_average_precision(total, relevant, k, rng, 400)
    error = 5 * sample.std() / math.sqrt(len(sample)) + 1e-9
    assert metrics.map_at_k == pytest.approx(sample.mean(), abs=error)
    assert metrics.map_worst - 1e-12 <= sample.min()
    assert sample.max() <= metrics.map_best + 1e-12


def straddling_expectation_by_log_gamma(total, relevant, k):
    """Section by section in floating point: one whole group, one straddling, j summed over its full range."""
    (s, n), (c, r) = total, relevant
    m = k - s

    def log_choose(a, b):
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    def group(n, r, s, c, terms):
        slope = (r - 1) / (n - 1) if n > 1 else 0.0
        return r / n * math.fsum((c + 1 + (t - 1) * slope) / (s + t) for t in range(1, terms + 1)) if n else 0.0

    whole = group(s, c, 0, 0, s)
    first, second = (math.fsum((t - 1) ** p / (s + t) for t in range(1, m + 1)) for p in (0, 1))
    terms = []
    for j in range(max(0, m - (n - r)), min(r, m) + 1):
        weight = math.exp(log_choose(r, j) + log_choose(n - r, m - j) - log_choose(n, m))
        inside = j / m * ((c + 1) * first + (j - 1) / (m - 1) * second)
        terms.append(weight * (whole + inside) / (c + j) if c + j else 0.0)
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("total", "relevant", "k"),
    [
        ((0, 100_000), (0, 3), 1000),
        ((0, 100_000), (0, 99_990), 1000),
        ((10, 50_000), (4, 20_000), 30_000),
        ((5000, 90_000), (10, 45_000), 6000),
        ((300, 1_000_000), (0, 50), 100_000),
    ],
)
def test_large_groups_keep_their_precision(total, relevant, k):
    metrics = from_histogram([total], [relevant], k=k)
    expected = straddling_expectation_by_log_gamma(total, relevant, k)
    # lgamma of a million is exact to about 1e-9 after the subtraction.
    assert metrics.map_at_k == pytest.approx(expected, rel=2e-8)


def test_harmonic_difference_equals_the_sum():
    starts, counts = (0, 1, 7, 255, 256, 257, 1000, 10**6), (0, 1, 2, 255, 256, 3000)
    for start in starts:
        for count in counts:
            expected = math.fsum(1 / (start + t) for t in range(1, count + 1))
            assert harmonic_difference(start, count) == pytest.approx(expected, rel=1e-12, abs=0)


# Radius 0..3, two queries. Query 0: items 1, 2, 0, 3 with 1, 0, 0, 2 relevant; query 1: 0, 4, 2, 0 with 0, 3, 0, 0.
TOTAL = np.array([[1, 2, 0, 3], [0, 4, 2, 0]])
RELEVANT = np.array([[1, 0, 0, 2], [0, 3, 0, 0]])


def test_hand_computed_table():
    metrics = from_histogram(TOTAL, RELEVANT, k=2)
    # Query 0: rank 1 is a hit, rank 2 is not: AP 1. Query 1: two of a group of four with three hits: both hits
    # (1/2) give 1, hit then miss (1/4) 1, miss then hit (1/4) 1/2.
    np.testing.assert_allclose(metrics.average_precision, [1, 0.875], rtol=0, atol=SHARP)
    assert metrics.map_at_k == pytest.approx(0.9375, abs=SHARP)
    # Denominator min(2, 3) = 2: query 0 gives 1/2; query 1 (1/2) 1 + (1/4) (1/2) + (1/4) (1/4) = 11/16.
    assert metrics.map_at_k_min_kr == pytest.approx((0.5 + 0.6875) / 2, abs=SHARP)
    assert metrics.map_at_k_r == pytest.approx((1 + 1.375) / 2 / 3, abs=SHARP)
    assert (metrics.map_worst, metrics.map_best) == pytest.approx(((1 + 0.5) / 2, 1), abs=SHARP)
    assert metrics.precision_at_k == pytest.approx((0.5 + 0.75) / 2, abs=SHARP)
    assert metrics.recall_at_k == pytest.approx((1 / 3 + 1.5 / 3) / 2, abs=SHARP)
    np.testing.assert_allclose(metrics.precision_by_radius, [0.5, (1 / 3 + 3 / 4) / 2, (1 / 3 + 1 / 2) / 2, 0.5])
    np.testing.assert_allclose(metrics.recall_by_radius, [1 / 6, (1 / 3 + 1) / 2, (1 / 3 + 1) / 2, 1])
    assert metrics.empty_ball_share.tolist() == [0.5, 0, 0, 0]
    assert metrics.median_tie_block == 3
    assert (metrics.k, metrics.num_queries, metrics.num_database) == (2, 2, 6)
    # Balls of query 0: one hit; then the same and two misses; of query 1: none, then three hits of four in any order.
    three_of_four = (1 + 1 + 1 + (1 + 1 + 3 / 4) + (1 + 2 / 3 + 3 / 4) + (1 / 2 + 2 / 3 + 3 / 4)) / 3 / 4
    np.testing.assert_allclose(metrics.map_by_radius[:2], [0.5, (1 + three_of_four) / 2], rtol=0, atol=SHARP)
    # Query 0: a hit, then a miss, of an ideal of two hits; query 1: 3/4 of a hit at each of two ranks.
    ideal = 1 + 1 / math.log2(3)
    assert metrics.ndcg_at_k == pytest.approx((1 / ideal + 0.75) / 2, abs=SHARP)
    curve = precision_recall_by_rank(TOTAL, RELEVANT, [1, 4, 6])
    np.testing.assert_allclose(curve.precision, [(1 + 0.75) / 2, ((1 + 2 / 3) / 4 + 3 / 4) / 2, 0.5])
    np.testing.assert_allclose(curve.recall, [(1 / 3 + 0.25) / 2, ((1 + 2 / 3) / 3 + 1) / 2, 1])


def test_more_hits_in_the_top_can_lower_the_best_order():
    # A hit, a miss, then one of a group of three with one relevant item: hits at ranks {1} or {1, 3}.
    metrics = from_histogram([[1, 1, 3]], [[1, 0, 1]], k=3)
    assert metrics.map_best == 1
    assert metrics.map_worst == pytest.approx((1 + 2 / 3) / 2, abs=SHARP)


def test_k_beyond_the_database_means_all_of_it():
    at_end, beyond = (from_histogram(TOTAL, RELEVANT, k=k) for k in (6, 1000))
    for field in dataclasses.fields(at_end):
        if field.name not in ("k", "map_at_k_min_kr"):
            np.testing.assert_array_equal(getattr(at_end, field.name), getattr(beyond, field.name))
    assert beyond.map_at_k_min_kr == at_end.map_at_k_min_kr == at_end.map_at_k_r
    assert beyond.k == 1000
    curve = precision_recall_by_rank(TOTAL, RELEVANT, [6, 1000])
    assert curve.precision[0] == curve.precision[1]
    assert curve.recall[0] == curve.recall[1] == 1


def test_query_without_relevant_items_or_without_items_scores_zero():
    metrics = from_histogram([[2, 3], [0, 0], [2, 0]], [[0, 0], [0, 0], [2, 0]], k=4)
    assert metrics.average_precision.tolist() == [0, 0, 1]
    assert metrics.map_at_k == pytest.approx(1 / 3)
    assert metrics.recall_at_k == pytest.approx(1 / 3)
    assert np.isfinite(metrics.precision_by_radius).all()


def test_untied_ranking_has_one_value():
    relevant = np.random.default_rng(0).integers(0, 2, (20, 30))
    metrics = from_histogram(np.ones((20, 30), int), relevant, k=17)
    expected = np.mean([float(oracles.average_precision(row.tolist(), 17, "hashing")) for row in relevant])
    assert [metrics.map_at_k, metrics.map_worst, metrics.map_best] == pytest.approx([expected] * 3, abs=SHARP)


def test_many_queries_equal_each_query_alone():
    rng = np.random.default_rng(1)
    total = rng.integers(0, 400, (700, 33))
    relevant = rng.binomial(total, rng.random((700, 1)))
    together = from_histogram(total, relevant, k=1000)
    alone = [from_histogram(total[q : q + 1], relevant[q : q + 1], k=1000) for q in range(0, 700, 50)]
    np.testing.assert_allclose(together.average_precision[::50], [m.map_at_k for m in alone], rtol=0, atol=SHARP)
    assert together.map_worst <= together.map_at_k <= together.map_best


@pytest.mark.parametrize("distances", [5, 33, 1024])
def test_blocks_of_queries_change_no_metric(monkeypatch, distances):
    rng = np.random.default_rng(distances)
    total = rng.multinomial(600, rng.dirichlet(np.full(distances, 0.3)), size=50)
    relevant = rng.binomial(total, rng.random((50, 1)) / 4)
    ranks = np.array([1, 7, 600])
    results = []
    for cells in (2**30, 7 * distances, 1):
        monkeypatch.setattr("cibhash.metrics._BLOCK_CELLS", cells)
        curves = precision_recall_by_rank(total, relevant, ranks)
        results.append((dataclasses.asdict(from_histogram(total, relevant, k=100)), curves))
    for found, curves in results[1:]:
        for name, value in results[0][0].items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=SHARP, err_msg=name)
        np.testing.assert_allclose(curves, results[0][1], rtol=0, atol=SHARP)


def test_metrics_of_codes_do_not_depend_on_the_order_of_the_database():
    rng = np.random.default_rng(2)
    codes, labels = rng.integers(0, 256, (400, 2), dtype=np.uint8), rng.integers(0, 5, 400)
    order = rng.permutation(300)
    values = []
    for rows in (np.arange(300), order):
        counts = hamming.histogram(codes[300:], codes[rows], labels[300:], labels[rows])
        values.append(from_histogram(*counts, k=40).map_at_k)
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_histogram(TOTAL, RELEVANT, k=0), "k is 0"),
        (lambda: from_histogram(TOTAL, RELEVANT[:1], k=1), r"\(1, 4\)"),
        (lambda: from_histogram(TOTAL[0], RELEVANT[0], k=1), r"\(4,\)"),
        (lambda: from_histogram(TOTAL[:0], RELEVANT[:0], k=1), r"\(0, 4\)"),
        (lambda: from_histogram(TOTAL * 1.0, RELEVANT, k=1), "float64"),
        (lambda: from_histogram(RELEVANT, TOTAL, k=1), "query 0 has 2 relevant of 0 items at distance 1"),
        (lambda: from_histogram(-TOTAL, -TOTAL, k=1), "-1 relevant"),
        (lambda: precision_recall_by_rank(TOTAL, RELEVANT, [3, 0]), "ranks contain 0"),
        (lambda: precision_recall_by_rank(TOTAL, RELEVANT, 3), r"ranks are int64 \(\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
