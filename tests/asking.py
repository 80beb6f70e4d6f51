"""Clients that ask a service without a pause while something happens to it, and judge every answer by brute force.

Knows nothing of what happens.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch

from cibhash.encoder import encode
from cibhash.errors import CIBHashError
from cibhash.images import decode_image
from cibhash.views import eval_view
from cluster.client import SearchClient
from tests.patience import HANG_S
from tests.service_fixture import Corpus

IMAGE_EVERY = 5
"""Of the queries so many, one is an image; the others are ids."""
_SURE = 1e-5
_REFUSED_PAUSE_S = 0.05
"""Without it, clients whose connections are refused would take the machine from what they wait for."""


class Asked(NamedTuple):
    """One request; times are those of `time.monotonic`."""

    begun_s: float
    ended_s: float
    told: str
    """The version that answered; or why nothing did."""


class Repeating:
    """Threads that do the same over and over, each with a number of its own, for as long as the block lasts."""

    def __init__(self, work: Callable[[int], None], threads: int) -> None:
        """Begins with the block.

        Args:
            work: Is told the thread's number and runs until `over` is set.
            threads: How many.
        """
        self.over = threading.Event()
        self._threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(HANG_S)


class Asking(Repeating):
    """Clients that try nothing again; the answers of all versions are known."""

    def __init__(self, url: str, corpus: Corpus, counts: dict[str, int], threads: int = 3) -> None:
        """Begins with the block.

        Args:
            url: Of the service.
            corpus: What it searches.
            counts: Per version how many of the corpus's samples, the first ones, it holds.
            threads: That ask.
        """
        self._client, self._corpus, self._counts = SearchClient(url, retries=0, timeout_s=HANG_S), corpus, counts
        self._rows = min(counts.values())
        self._nearest = corpus.nearest(corpus.codes[: self._rows], len(corpus.ids))
        self._images = set(_clear_images(corpus))
        self.answered: list[Asked] = []
        self.refused: list[Asked] = []
        self.wrong: list[str] = []
        super().__init__(self._ask, threads)

    def _ask(self, seed: int) -> None:
        draws = np.random.default_rng(seed)
        while not self.over.is_set():
            row, k = int(draws.integers(self._rows)), int(draws.integers(1, 100))
            begun_s = time.monotonic()
            try:
                if draws.integers(IMAGE_EVERY) or row not in self._images:
                    answer = self._client.search_ids([self._corpus.ids[row]], k=k)
                else:
                    answer = self._client.search_image(self._corpus.samples[row].image, k=k)
            except CIBHashError as error:
                self.refused.append(Asked(begun_s, time.monotonic(), f"{type(error).__name__}: {error}"))
                time.sleep(_REFUSED_PAUSE_S)
                continue
            except Exception as error:
                self.wrong.append(repr(error))
                continue
            self.answered.append(Asked(begun_s, time.monotonic(), answer.index_version))
            found = [(near.id, near.distance) for near in answer.neighbors[0]]
            if answer.partial or not self.is_right(found, row, k, answer.index_version):
                self.wrong.append(f"row {row}, k {k}: {answer}")

    def is_right(self, found: list[tuple[int, int]], row: int, k: int, version: str) -> bool:
        """Whether these are the neighbors, (id, distance) each, of a row in a version."""
        return found == self.expected(row, k, version)

    def expected(self, row: int, k: int, version: str) -> list[tuple[int, int]]:
        """Neighbors of a row, (id, distance) each, in a version."""
        ids = set(self._corpus.ids[: self._counts[version]])
        nearest = (part[row].tolist() for part in self._nearest)
        return [pair for pair in zip(*nearest, strict=True) if pair[0] in ids][:k]

    def wait_for_more(self, number: int = 40) -> None:
        """Until so many more are answered."""
        before, deadline = len(self.answered), time.monotonic() + HANG_S
        while len(self.answered) < before + number:
            assert time.monotonic() < deadline, (self.refused[-1:], self.wrong[:1])
            time.sleep(0.05)

    def wait_for(self, version: str) -> None:
        """Until answers come from that version only."""
        deadline = time.monotonic() + HANG_S
        while [one.told for one in self.answered[-20:]] != [version] * 20:
            assert time.monotonic() < deadline, (self.refused[-1:], self.wrong[:1])
            time.sleep(0.05)

    def wait_until_recovered(self) -> None:
        """Until so many are answered after the last refusal."""
        deadline = time.monotonic() + HANG_S
        while True:
            since = max((one.ended_s for one in self.refused[-1:]), default=0.0)
            if sum(one.begun_s > since for one in self.answered[-40:]) == 40:
                return
            assert time.monotonic() < deadline, (self.refused[-1:], self.wrong[:1])
            time.sleep(0.05)

    def check_all_answered(self) -> None:
        """No request was refused or lost, no answer wrong or partial."""
        assert not self.wrong, self.wrong[:3]
        assert not self.refused, self.refused[:3]
        assert self.answered


def _clear_images(corpus: Corpus) -> list[int]:
    """Samples whose code is the same whatever images they are encoded with: no logit is so near to 0 that it rounds."""
    size = corpus.encoder.spec.image_size
    views = np.stack([eval_view(decode_image(sample.image), size) for sample in corpus.samples])
    logits = encode(corpus.encoder, torch.from_numpy(views)).logits
    return np.flatnonzero(np.abs(logits).min(axis=1) > _SURE).tolist()
