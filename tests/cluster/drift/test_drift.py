"""The job over real tables: what it samples, what it finds, what it says, and what switching an index says then."""

import json
from pathlib import Path

import numpy as np
import pytest

from cibhash import drift as measures
from cibhash.errors import ConfigError, DataError, ManifestMismatch
from cibhash.types import Codes
from cluster.drift.drift import DriftResult, drift
from cluster.drift.findings import Findings
from cluster.drift.left_beside import findings_of
from cluster.drift.tables import format_table
from cluster.drift_config import DriftConfig
from cluster.index.build import build_index
from cluster.index_config import IndexConfig
from cluster.manifests import load_manifest
from cluster.runtime import root_cause
from tests.tables import make_code_table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]
OLD, NEW = "a" * 64, "b" * 64


def make_codes(seed: int, count: int = 300, classes: int = 6, noise: float = 0.1) -> tuple[Codes, list[list[int]]]:
    """Codes of 32 bits around a center per class, with every bit flipped at this rate, and their labels."""
    rng = np.random.default_rng([seed, count])
    labels = np.arange(count) % classes
    centers = np.random.default_rng(9).integers(0, 2, (classes, 32))
    bits = centers[labels] ^ (rng.random((count, 32)) < noise)
    return np.packbits(bits, axis=1, bitorder="little"), [[int(label)] for label in labels]


def keys(count: int, first: int = 0) -> list[str]:
    return [f"picture {number}" for number in range(first, first + count)]


def job(folder: Path, old: str, new: str, **fields: object) -> DriftResult:
    return drift(DriftConfig.model_validate({"old": old, "new": new, "output": str(folder / "drift"), **fields}))


def refusal(folder: Path, old: str, new: str, **fields: object) -> BaseException:
    with pytest.raises(Exception) as caught:
        job(folder, old, new, **fields)
    return root_cause(caught.value)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """300 images by two encoders, of which the new one is better; other parts, another order."""
    folder = tmp_path_factory.mktemp("tables")
    old, labels = make_codes(1, noise=0.25)
    new, _ = make_codes(2, noise=0.1)
    shuffled = np.random.default_rng(4).permutation(300)
    one = make_code_table(folder / "old", old, labels=labels, keys=keys(300), encoder_digest=OLD, rows_per_part=70)
    other = make_code_table(
        folder / "new",
        new[shuffled],
        labels=[labels[i] for i in shuffled],
        keys=[keys(300)[i] for i in shuffled],
        encoder_digest=NEW,
        rows_per_part=110,
    )
    return folder, one, other


def test_a_better_encoder_is_called_so_and_a_mixture_is_not(tables: tuple[Path, str, str], tmp_path: Path) -> None:
    _, old, new = tables
    found = job(tmp_path, old, new, k=40, queries=120)
    assert (found.images, found.queries, found.bits) == (300, 120, 32)
    assert found.map_old is not None
    assert found.map_new is not None
    assert found.map_new > found.map_old
    assert found.verdict.startswith("The new encoder finds better (+0.")
    findings = load_manifest(Findings, str(tmp_path / "drift"))
    first, second = make_codes(1, noise=0.25)[0], make_codes(2, noise=0.1)[0]
    change = measures.code_change(first, second)  # all 300 are in the sample, in whatever order
    np.testing.assert_allclose(findings.flip_rates, change.flip_rates)
    np.testing.assert_allclose(findings.flipped, change.flipped)
    assert findings.new_minus_old is not None
    assert findings.new_minus_old.mean == pytest.approx(found.map_new - found.map_old)
    assert findings.new_minus_old.interval.low < findings.new_minus_old.mean < findings.new_minus_old.interval.high
    page = (tmp_path / "drift" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert findings.verdict in page.replace("&#x27;", "'")
    assert findings.verdict.split()[0] in format_table(found)


def test_the_sample_depends_on_keys_alone(tables: tuple[Path, str, str], tmp_path: Path) -> None:
    """The same numbers with other parts, another order, and either table's images added that the other has not."""
    _, old, new = tables
    first = job(tmp_path / "1", old, new, sample=100, queries=50, k=10)
    assert first.images == 100
    codes, labels = make_codes(1, noise=0.25)
    again = make_code_table(
        tmp_path / "again",
        codes[::-1].copy(),
        labels=labels[::-1],
        keys=keys(300)[::-1],
        encoder_digest=OLD,
        rows_per_part=13,
    )
    second = job(tmp_path / "2", again, new, sample=100, queries=50, k=10)
    numbers = ("images", "mean_flipped", "overlap", "overlap_mixed", "map_old", "map_new", "map_mixed", "verdict")
    assert [getattr(first, name) for name in numbers] == [getattr(second, name) for name in numbers]


def test_images_of_one_table_alone_are_left_out_and_counted(tmp_path: Path) -> None:
    codes, labels = make_codes(1)
    old = make_code_table(tmp_path / "old", codes[:200], labels=labels[:200], keys=keys(200), encoder_digest=OLD)
    new = make_code_table(tmp_path / "new", codes[50:], labels=labels[50:], keys=keys(250, 50), encoder_digest=NEW)
    found = job(tmp_path, old, new, k=10)
    assert (found.images, found.unchanged, found.may_mix) == (150, 1.0, True)
    assert found.verdict.endswith("All codes are the same: nothing has to be encoded anew.")
    findings = load_manifest(Findings, str(tmp_path / "drift"))
    assert (findings.old.only_here, findings.new.only_here) == (50, 100)
    assert "50 images of the sample are only in the old table" in (tmp_path / "drift" / "report.html").read_text()
    sampled = job(tmp_path / "sampled", old, new, k=10, sample=80)
    assert 2 <= sampled.images < 80, "of the keys that come first some are in one table only"
    none = make_code_table(tmp_path / "none", codes[:9], keys=keys(9, 1000), encoder_digest=NEW)
    assert "0 images of the sample are in both, by their keys" in str(refusal(tmp_path, old, none))


def test_without_labels_neighbors_decide(tmp_path: Path) -> None:
    codes, _ = make_codes(1)
    old = make_code_table(tmp_path / "old", codes, keys=keys(300), encoder_digest=OLD)
    close = codes.copy()
    close[:3, 0] ^= 1
    other, _ = make_codes(2)
    for name, changed, mixes in (("close", close, True), ("other", other, False)):
        new = make_code_table(tmp_path / name, changed, keys=keys(300), encoder_digest=NEW)
        found = job(tmp_path / f"of {name}", old, new, k=20, tolerance=0.02)
        assert (found.map_old, found.map_new, found.map_mixed, found.may_mix) == (None, None, None, mixes)
        assert "which encoder finds better was not measured" in found.verdict
        assert ("New codes may stand among old ones" in found.verdict) == mixes
        assert ("Encode everything anew before you switch" in found.verdict) != mixes


def test_lengths_in_common(tmp_path: Path) -> None:
    codes, labels = make_codes(1)
    old = make_code_table(tmp_path / "old", codes, labels=labels, keys=keys(300), prefixes=(16, 32))
    short = make_code_table(tmp_path / "short", codes[:, :2].copy(), labels=labels, keys=keys(300), prefixes=(16,))
    assert job(tmp_path, old, short, k=10).bits == 16
    other = make_code_table(tmp_path / "other", codes[:, :3].copy(), keys=keys(300), prefixes=(24,))
    refused = refusal(tmp_path, old, other)
    assert isinstance(refused, ManifestMismatch)
    assert str(refused) == f"codes of {old} of 16, 32 and {other} of 24 bits: no length that both have"


def test_switching_says_what_was_found(
    tables: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, old, new = tables
    index = str(tmp_path / "index")
    build_index(IndexConfig(codes=old, output=index))
    build_index(IndexConfig(codes=new, output=index))
    build_index(IndexConfig(output=index, switch="v000001"))
    assert "switch: to another encoder; `cibhash drift` would say what changes" in capsys.readouterr().err
    found = job(tmp_path, old, new, k=20, index=index)
    assert findings_of(index, OLD, NEW) == load_manifest(Findings, str(tmp_path / "drift"))
    assert findings_of(index, NEW, OLD) is findings_of(index, OLD, OLD) is None
    build_index(IndexConfig(output=index, switch="v000002"))
    assert f"switch: {found.verdict}" in capsys.readouterr().err
    foreign = make_code_table(tmp_path / "foreign", make_codes(3)[0], keys=keys(300), encoder_digest="c" * 64)
    refused = refusal(tmp_path, foreign, foreign, index=index)
    assert isinstance(refused, ConfigError)
    assert "is of encoder bbbbbbbbbbbbbbbb..., the tables are of cccccccccccccccc... and" in str(refused)
    path = Path(found.beside_index)
    path.write_text(json.dumps({**json.loads(path.read_text()), "k": "many"}))
    with pytest.raises(DataError, match="broken drift report manifest"):
        findings_of(index, OLD, NEW)


def test_a_dry_run_writes_nothing(tables: tuple[Path, str, str], tmp_path: Path) -> None:
    _, old, new = tables
    planned = job(tmp_path, old, new, dry_run=True)
    assert (planned.images, planned.bits, planned.may_mix) == (0, 32, None)
    assert format_table(planned) == ""
    assert not list(tmp_path.iterdir())
