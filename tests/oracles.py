"""Slow twins: the formulas and definitions of the method in plain loops, independent of the code under test."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import fsum, log, log2, prod

import numpy as np
import torch
from torch import Tensor


def nt_xent(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """Transcribed from the released code: broadcast cosine, mask by a double loop, positive first, sum over 2N."""
    batch_size = z_i.shape[0]
    rows = 2 * batch_size
    z = torch.cat((z_i, z_j), dim=0)
    similarity = torch.nn.functional.cosine_similarity(z.unsqueeze(1), z.unsqueeze(0), dim=2) / temperature
    positive = torch.cat((torch.diag(similarity, batch_size), torch.diag(similarity, -batch_size))).reshape(rows, 1)
    mask = torch.ones((rows, rows), dtype=torch.bool)
    for i in range(rows):
        mask[i, i] = False
    for i in range(batch_size):
        mask[i, batch_size + i] = False
        mask[batch_size + i, i] = False
    negative = similarity[mask].reshape(rows, -1)
    logits = torch.cat((positive, negative), dim=1)
    labels = torch.zeros(rows, dtype=torch.long)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / rows


def bernoulli_kl(p: Sequence[Sequence[float]], q: Sequence[Sequence[float]]) -> float:
    epsilon = 1e-8
    result = 0.0
    for p_row, q_row in zip(p, q, strict=True):
        for a, b in zip(p_row, q_row, strict=True):
            result += a * (log(a + epsilon) - log(b + epsilon))
            result += (1 - a) * (log(1 - a + epsilon) - log(1 - b + epsilon))
    return result / len(p)


def hamming(a: Iterable[int], b: Iterable[int]) -> int:
    return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))


def search(query: np.ndarray, database: np.ndarray, ids: Sequence[int]) -> list[tuple[int, int]]:
    """The whole database as (distance, id), in order."""
    return sorted((hamming(query, code), int(id_)) for code, id_ in zip(database, ids, strict=True))


def is_relevant(a: object, b: object) -> bool:
    """Of two int labels or two rows of bool labels."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return any(x and y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return a == b and a != -1


def histogram(
    queries: np.ndarray, database: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    total = np.zeros((len(queries), 8 * queries.shape[1] + 1), dtype=np.int64)
    relevant = np.zeros_like(total)
    for q, query in enumerate(queries):
        for n, code in enumerate(database):
            distance = hamming(query, code)
            total[q, distance] += 1
            relevant[q, distance] += is_relevant(query_labels[q], database_labels[n])
    return total, relevant


def group_orders(items: int, relevant: int) -> Iterator[tuple[int, ...]]:
    """All distinct orders of one tie group as 0/1 per rank; each stands for the same number of permutations."""
    for hits in itertools.combinations(range(items), relevant):
        yield tuple(int(rank in hits) for rank in range(items))


def ranking_orders(total: Sequence[int], relevant: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All distinct orders of a whole ranking, equally likely."""
    groups = [list(group_orders(n, r)) for n, r in zip(total, relevant, strict=True)]
    for choice in itertools.product(*groups):
        yield tuple(itertools.chain.from_iterable(choice))


def average_precision(ranking: Sequence[int], k: int, denominator: str) -> Fraction:
    """AP@k of one order, in exact arithmetic; `denominator` is hashing, min_kr or r."""
    top = ranking[:k]
    precision_sum = sum(
        (Fraction(sum(top[: rank + 1]), rank + 1) for rank, hit in enumerate(top) if hit), start=Fraction(0)
    )
    divisor = {"hashing": sum(top), "min_kr": min(k, sum(ranking)), "r": sum(ranking)}[denominator]
    return precision_sum / divisor if divisor else Fraction(0)


def enumerate_average_precision(
    total: Sequence[int], relevant: Sequence[int], k: int, denominator: str
) -> tuple[Fraction, Fraction, Fraction]:
    """Mean, least and largest AP@k over all orders of ties."""
    values = [average_precision(order, k, denominator) for order in ranking_orders(total, relevant)]
    return sum(values, start=Fraction(0)) / len(values), min(values), max(values)


def enumerate_hits(total: Sequence[int], relevant: Sequence[int], k: int) -> Fraction:
    """Mean number of relevant items in the top k over all orders of ties."""
    values = [sum(order[:k]) for order in ranking_orders(total, relevant)]
    return Fraction(sum(values), len(values))


def ndcg(ranking: Sequence[int], k: int) -> float:
    """NDCG@k of one order, binary gains."""
    best = sorted(ranking, reverse=True)
    gain, ideal = (sum(hit / log2(rank + 2) for rank, hit in enumerate(order[:k])) for order in (ranking, best))
    return gain / ideal if ideal else 0.0


def enumerate_ndcg(total: Sequence[int], relevant: Sequence[int], k: int) -> float:
    """Mean NDCG@k over all orders of ties."""
    values = [ndcg(order, k) for order in ranking_orders(total, relevant)]
    return fsum(values) / len(values)


def precision_within(total: Sequence[int], relevant: Sequence[int], radius: int) -> Fraction:
    """Relevant items within an inclusive radius over all items there; an empty ball counts 0."""
    items, hits = sum(total[: radius + 1]), sum(relevant[: radius + 1])
    return Fraction(int(hits), int(items)) if items else Fraction(0)


def num_orders(total: Sequence[int], relevant: Sequence[int]) -> int:
    return prod(sum(1 for _ in itertools.combinations(range(n), r)) for n, r in zip(total, relevant, strict=True))


def sample_average_precision(
    total: np.ndarray, relevant: np.ndarray, k: int, rng: np.random.Generator, num_samples: int
) -> np.ndarray:
    """AP@k, hashing denominator, of random orders of ties of one query."""
    values = np.zeros(num_samples)
    for sample in range(num_samples):
        groups = [rng.permutation(np.arange(n) < r) for n, r in zip(total, relevant, strict=True)]
        top = np.concatenate(groups)[:k]
        if top.any():
            ranks = np.flatnonzero(top) + 1
            values[sample] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return values
