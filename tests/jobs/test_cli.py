"""The console script as a person meets it, in its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import storage
from cluster.datasets import open_dataset, shard_samples
from jobs.cli import COMMANDS, main
from tests.patience import HANG_S
from tests.s3 import s3_bucket as s3_bucket


def run(*argv: str, module: str = "jobs.cli") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *argv], capture_output=True, text=True, timeout=HANG_S, check=False
    )


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, meaning in COMMANDS.items():
        assert f"  {name} " in text
        assert meaning in text
        assert Path("jobs", f"{name}.py").is_file()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cibhash ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "cibhash: error: unknown command 'trian': did you mean train?\n"),
        (["xyz"], "cibhash: error: unknown command 'xyz': expected one of pack, train, "),
    ],
)
def test_unknown_commands(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_no_command_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: cibhash COMMAND")


def test_module_and_script_are_the_same_and_mistakes_are_one_line() -> None:
    script = run("train", "--datset", "x", "--output", "y")
    module = run("--datset", "x", "--output", "y", module="jobs.train")
    for done in (script, module):
        assert done.returncode == 2
        assert done.stderr == "cibhash train: error: unknown option --datset: did you mean --dataset?\n"
        line = json.loads(done.stdout)
        assert (line["job"], line["status"], line["error_type"]) == ("train", "error", "ConfigError")


def test_a_missing_dataset_ends_with_the_storage_code_and_a_report(tmp_path: Path) -> None:
    output = tmp_path / "codes"
    done = run("encode", "--encoder", str(tmp_path), "--dataset", str(tmp_path), "--output", str(output))
    assert done.returncode == 4
    assert done.stderr == f"cibhash encode: error: {tmp_path}: not a complete dataset: dataset.json is missing\n"
    assert json.loads(done.stdout)["exit_code"] == 4
    report = json.loads((output / "run_report.json").read_text())
    assert (report["status"], report["config"]["dataset"]) == ("error", str(tmp_path))


@pytest.mark.ray
def test_pack_from_s3_to_s3(s3_bucket: str) -> None:
    for number in range(3):
        storage.write_bytes(f"{s3_bucket}/photos/{number}.png", b"not looked at %d" % number)
    storage.write_bytes(f"{s3_bucket}/photos/list.csv", b"path,labels\n0.png,4\n1.png,\n2.png,1;2\n")
    done = run("pack", f"{s3_bucket}/photos/list.csv", "--output", f"{s3_bucket}/out")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    assert (line["job"], line["status"], line["samples"]) == ("pack", "ok", 3)
    uri = line["datasets"]["all"]["uri"]
    assert uri == f"{s3_bucket}/out/all"
    (shard,) = open_dataset(uri).shards
    samples = {sample.key: (sample.image, sample.labels) for sample in shard_samples(uri, shard)}
    assert samples == {
        "0": (b"not looked at 0", (4,)),
        "1": (b"not looked at 1", ()),
        "2": (b"not looked at 2", (1, 2)),
    }
    report = json.loads(storage.read_bytes(f"{s3_bucket}/out/run_report.json"))
    assert report["result"]["samples"] == 3
