"""What reordering the nearest candidates by the query's logits is worth: mAP by the number of candidates.

    python tests/benchmarks/rerank.py QUERIES DATABASE [--k 1000] [--candidates 1000 2000 5000 10000] [--count 2000]

QUERIES and DATABASE are code tables of one encoder with labels; QUERIES has logits (`encode --logits`). Per query the
nearest candidates by Hamming distance are ranked by asymmetric distance, as the service's `rerank` does; mAP@k is
tie-aware, like that of Hamming distance beside it. All codes as candidates is the asymmetric ranking of `evaluate`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cibhash.asymmetric import LEVELS, distances, query_weights
from cibhash.hamming import search
from cibhash.metrics import from_histogram
from cluster.code_tables import codes_of, logits_of, read_part
from cluster.code_versions import open_codes
from tests.benchmarks import measuring


def main() -> None:
    """Ranks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries")
    parser.add_argument("database")
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 2000, 5000, 10000])
    parser.add_argument("--count", type=int, default=2000, help="queries, evenly spread (default 2000)")
    options = parser.parse_args()
    (query_codes, query_labels, logits), (codes, labels, _) = _read(options.queries), _read(options.database)
    taken = np.linspace(0, len(query_codes) - 1, options.count).astype(int)
    bits, rows = 8 * codes.shape[1], []
    weights = query_weights(logits[taken], bits)
    most = max(options.candidates)
    nearest = search(query_codes[taken], codes, most)
    relevant = labels[nearest.ids] == query_labels[taken][:, None]
    weighted = np.empty(nearest.ids.shape, np.int32)
    for place, query in enumerate(taken):
        weighted[place] = distances(weights[[place]], query_codes[[query]], codes[nearest.ids[place]])[0]
    rows.append({"candidates": 0, "ranked by": "Hamming distance", "map": _map(nearest.distances, relevant, options.k)})
    for count in options.candidates:
        score = _map(weighted[:, :count], relevant[:, :count], options.k)
        rows.append({"candidates": count, "ranked by": "asymmetric distance", "map": score})
    for row in rows:
        print(f"{row['candidates']:>8,}  {row['ranked by']:<20}  {row['map']:.4f}")
    record = {"benchmark": "rerank", "bits": bits, "k": options.k, "queries": len(taken), "database": len(codes)}
    print(json.dumps({**record, "rows": rows, "machine": measuring.machine()}))


def _read(uri: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, single labels and logits (or nothing) of a code table."""
    manifest = open_codes(uri)
    tables = [read_part(uri, part) for part in manifest.parts]
    codes = np.concatenate([codes_of(table, manifest.bits) for table in tables])
    labels = np.array([labels[0] for table in tables for labels in table["labels"].to_pylist()])
    logits = np.concatenate([logits_of(table) for table in tables]) if manifest.logits else np.empty(0)
    return codes, labels, logits


def _map(distances_QM: np.ndarray, relevant_QM: np.ndarray, k: int) -> float:
    """Tie-aware mAP@k of ranked candidates, from their histograms."""
    total = np.zeros((len(distances_QM), LEVELS + 1), np.int64)
    hits = np.zeros_like(total)
    for counts, weight in ((total, np.ones_like(relevant_QM)), (hits, relevant_QM)):
        for row, (found, one) in enumerate(zip(distances_QM, weight, strict=True)):
            counts[row] = np.bincount(found, weights=one, minlength=LEVELS + 1)
    return float(from_histogram(total, hits, k=k).map_at_k)


if __name__ == "__main__":
    main()
