"""Metrics of the query path, exported by Ray next to its own (prefix `ray_`).

Knows nothing of HTTP. Tags have few values; no key, id or user ever becomes one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve import metrics

from cluster.service.schema import Coverage, RequestRefused

SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
QUERIES = [1.0, 10.0, 100.0, 1000.0, 10000.0]


class QueryMetrics:
    """The router's counters."""

    def __init__(self) -> None:
        self._requests = metrics.Counter("cibhash_query_total", "Search requests by HTTP status.", tag_keys=("status",))
        self._seconds = metrics.Histogram("cibhash_query_seconds", "Seconds per search request.", boundaries=SECONDS)
        self._queries = metrics.Histogram("cibhash_query_batch_size", "Queries per request.", boundaries=QUERIES)
        self._partial = metrics.Counter("cibhash_query_partial_answers_total", "Answers with missing shards.")
        self._coverage = metrics.Gauge("cibhash_query_coverage", "Share of the index in the last answer.")

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Counts one request and its duration, whatever becomes of it."""
        started, status = time.perf_counter(), 500
        try:
            yield
            status = 200
        except RequestRefused as error:
            status = error.status
            raise
        finally:
            self._requests.inc(tags={"status": str(status)})
            self._seconds.observe(time.perf_counter() - started)

    def answered(self, num_queries: int, coverage: Coverage) -> None:
        """Notes the size of a request and how complete its answer is."""
        self._queries.observe(num_queries)
        self._coverage.set(coverage.coverage)
        if coverage.partial:
            self._partial.inc()
