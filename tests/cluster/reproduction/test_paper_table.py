"""The packaged table: every row is runnable, every number says where it is from; and what a table may not be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cibhash.errors import ConfigError
from cluster.packing.source_cifar10 import PUBLISHED
from cluster.reproduction.paper_table import PaperTable, Row, find_protocol, load_table, select_rows
from jobs.reproduce import training_of

TABLE = load_table()
ROWS = {row.name: row for row in TABLE.rows}
BACKBONES = {"MobileNetV2": "mobilenetv2_100", "VGG-16": "vgg16.tv_in1k"}


@pytest.mark.parametrize("row", TABLE.rows, ids=lambda row: row.name)
def test_every_row_names_recipes_that_parse_and_are_of_its_backbone(row: Row) -> None:
    training = training_of(row)
    assert training.backbone.name == BACKBONES[row.backbone]
    assert not training.backbone.trainable
    for settings in row.at.values():
        assert training.model_validate({**training.model_dump(), **settings}) != training


@pytest.mark.parametrize("row", [row for row in TABLE.rows if row.ablation_of], ids=lambda row: row.name)
def test_an_ablation_differs_from_its_row_in_one_setting(row: Row) -> None:
    base = ROWS[row.ablation_of]
    ours, theirs = (training_of(one).model_dump() for one in (row, base))
    changed = {name: value for name, value in ours.items() if value != theirs[name]}
    assert list(changed.items()) in ([("beta", 0.0)], [("code_sampling", "relaxed")], [("code_sampling", "bernoulli")])
    assert (row.bits, row.training, row.seeds) == (base.bits, base.training, base.seeds)


def test_rows_with_the_papers_backbone_have_a_model_for_every_length_as_the_paper_has() -> None:
    for row in TABLE.rows:
        assert row.training == ("per_length" if row.backbone == "VGG-16" else "nested")
    parity = ROWS["cifar10-official-vgg16-parity"]
    assert parity.recipes == ("parity",)
    assert parity.at == {16: {"epochs": 80}}
    assert parity.monitor_split == "validation"


def test_numbers_and_their_evidence() -> None:
    """As they could be found: no method but those of one quoted comparison stands beside CIBHash's own."""
    found = {one.name: (tuple(one.map.values()), one.evidence) for one in TABLE.published if one.method == "CIBHash"}
    assert found == {
        "cibhash-cifar10": ((0.590, 0.622, 0.641), "quoted"),
        "cibhash-mscoco": ((0.737, 0.760, 0.775), "quoted"),
        "cibhash-nuswide": ((0.790, 0.807, 0.815), "unverified"),
        "sdc-cibhash": ((0.562, 0.592, 0.612), "quoted"),
    }
    others = [one for one in TABLE.published if one.method != "CIBHash"]
    assert {one.protocols for one in others} == {("cifar10-deephash",)}
    assert all(one.source and one.backbone == "VGG-16" for one in TABLE.published)


def test_acceptance_bands() -> None:
    for name in ("cifar10-official-vgg16-parity", "cifar10-vgg16"):
        band = ROWS[name].expect
        assert band is not None
        assert (band.low, band.high) == ({16: 0.56, 32: 0.59, 64: 0.61}, {})
    band = ROWS["cifar10-mobilenetv2"].expect
    assert band is not None
    assert [band.holds(16, value) for value in (0.433, 0.434, 0.474, 0.475)] == [False, True, True, False]
    assert band.holds(128, 0.5) is None


def test_protocols_are_those_that_packing_deals() -> None:
    splits = [split for one in TABLE.protocols.values() for split in one.splits]
    dealt = {f"cifar10/{name}" for name in (*PUBLISHED, "deephash")}
    assert {split for split in splits if split.startswith("cifar10/")} <= dealt
    assert {name: one.k for name, one in TABLE.protocols.items() if one.k != 1000} == {"mscoco": 5000, "nuswide": 5000}


def test_rows_are_selected_by_patterns_in_the_tables_order() -> None:
    names = [row.name for row in select_rows(TABLE, "nuswide-*, cifar10-mobilenetv2")]
    assert names == ["cifar10-mobilenetv2", "nuswide-vgg16"]
    assert select_rows(TABLE, "") == TABLE.rows
    with pytest.raises(ConfigError, match="rows 'cifar10-vgg61': no such row: did you mean cifar10-vgg16"):
        select_rows(TABLE, "cifar10-vgg61")
    with pytest.raises(ConfigError, match=r"rows 'x\*': no such row: rows are cifar10-mobilenetv2, "):
        select_rows(TABLE, "cifar10-vgg16,x*")


def test_protocols_by_name() -> None:
    assert find_protocol(TABLE, "mscoco").title == "MSCOCO"
    assert len(TABLE.published_for("cifar10-deephash")) == 7
    with pytest.raises(ConfigError, match="protocol 'cifar': did you mean cifar10"):
        find_protocol(TABLE, "cifar")


def changed(**rows: Any) -> dict[str, Any]:
    """A small table; `rows` are fields of its only row."""
    row = {
        "name": "a",
        "method": "A",
        "protocol": "p",
        "backbone": "B",
        "recipes": ["paper"],
        "bits": [16],
        "training": "per_length",
    }
    protocol = {"title": "P", "k": 10, "about": "a", "evidence": "source", "splits": ["s"], "sizes": {}, "pack": "x"}
    published = {
        "name": "n",
        "method": "A",
        "protocols": ["p"],
        "backbone": "B",
        "map": {16: 0.5},
        "source": "S",
        "evidence": "quoted",
    }
    return {"protocols": {"p": protocol}, "published": [published], "rows": [{**row, **rows}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(protocol="q"), "row a: no protocol 'q'"),
        (changed(published="m"), "row a: nothing published 'm' under p"),
        (changed(ablation_of="b"), "row a: ablation_of 'b': no such row under p"),
        (changed(ablation_of="a"), "row a: ablation_of 'a': no such row under p"),
        (changed(recipes=[]), "rows.0.recipes: "),
        (changed(bits=[12]), "12 bits: a code length is a multiple of 8"),
        (changed(seeds=[1, 1]), "row a: seeds: one is named twice"),
        (changed(at={32: {"epochs": 2}}), "row a: at: 32 bits are not among"),
        (changed(training="nested", at={16: {"epochs": 2}}), "row a: at: a nested code has one training"),
        (changed(expect={"low": {8: 0.5}, "source": "s"}), "row a: expect: 8 bits are not among"),
        (changed(epochs=3), "rows.0.epochs: extra inputs are not permitted"),
        ({**changed(), "rows": changed()["rows"] * 2}, "row a: the name comes twice"),
        ({**changed(), "published": [{**changed()["published"][0], "evidence": "measured"}]}, "published.0.evidence: "),
        ({**changed(), "published": [{**changed()["published"][0], "source": ""}]}, "published.0.source: "),
        ({**changed(), "published": [{**changed()["published"][0], "map": {16: 59.0}}]}, "published.0.map.16: "),
        (
            {**changed(), "published": [{**changed()["published"][0], "protocols": ["q"]}]},
            "published n: no protocol 'q'",
        ),
        ([], "input should be"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_table(str(path))
    text = str(caught.value)
    assert text.startswith(f"table {path}: ")
    assert message.lower() in text.lower()
    assert "\n" not in text


def test_files_that_are_no_yaml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError, match="no such file"):
        load_table(str(path))
    path.write_text("rows: [\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: line 2: "):
        load_table(str(path))
    path.write_text("rows: []\nrows: []\n")
    with pytest.raises(ConfigError, match="field 'rows' comes twice"):
        load_table(str(path))
    assert PaperTable.model_validate(changed()).published_of(ROWS["mscoco-vgg16"]) is None
