"""FAISS for one search: imported when it is first needed, its threads set.

Knows nothing of codes.
"""

import functools
from typing import Any

from cluster import runtime


def faiss_with(threads: int) -> Any:
    """The module, for work in the calling thread with so many OpenMP threads."""
    faiss = _faiss()
    # OpenMP keeps this number per calling thread, so it is set where the work is done.
    faiss.omp_set_num_threads(threads)
    return faiss


@functools.cache
def _faiss() -> Any:
    runtime.check_faiss()
    import faiss

    return faiss
