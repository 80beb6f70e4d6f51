"""SIGKILL at random moments of an encode job: the table must be that of an undisturbed run, bit for bit.

    python tests/benchmarks/encode_kills.py [--kills 20] [--seed 0]

Targets in turn: driver, actor, any worker, raylet; each struck once a random number of parts is committed. What the
kill ends is run again. Prints one line per kill, and last a record as JSON.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cluster.config import EncodeConfig
from tests.benchmarks import measuring
from tests.datasets import published_encoder, shape_dataset
from tests.encode_kills import Target, finish, strike, table_files

_SHARDS, _IMAGES = 12, 60


def main() -> None:
    """Kills, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draws, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory(prefix="cibhash-kills-") as name:
        folder = Path(name)
        dataset = shape_dataset(folder / "data", [_IMAGES] * _SHARDS)
        settings = {"dataset": dataset, "encoder": published_encoder(folder / "encoder"), "batch_size": 8}
        config = EncodeConfig.model_validate({**settings, "output": str(folder / "calm"), "threads_per_worker": 1})
        finish(config)
        expected = table_files(config.output)
        for number in range(options.kills):
            target: Target = get_args(Target)[number % len(get_args(Target))]
            output, begun = str(folder / f"codes-{number}"), time.monotonic()
            struck = strike(config.model_copy(update={"output": output}), target, draws.randrange(_SHARDS))
            equal = table_files(output) == expected
            row = {"target": target, "parts_before": struck.parts_before, "survived": struck.survived}
            rows.append({**row, "parts_reused": struck.parts_reused, "equal": equal})
            print(json.dumps({**rows[-1], "seconds": round(time.monotonic() - begun, 1)}), file=sys.stderr)
    unequal = sum(not row["equal"] for row in rows)
    record = {"benchmark": "encode_kills", "kills": len(rows), "unequal": unequal, "parts": _SHARDS, "rows": rows}
    sys.stdout.write(json.dumps({**record, "machine": measuring.machine()}) + "\n")
    sys.exit(1 if unequal else 0)


if __name__ == "__main__":
    main()
