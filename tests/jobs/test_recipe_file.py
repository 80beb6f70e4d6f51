"""Recipes are found by name or location, read over those they extend, and merged field by field."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cibhash.errors import ConfigError
from cluster import storage
from jobs.recipe_file import Layer, merged, packaged_names, packaged_recipes, read_recipe
from tests.s3 import s3_bucket as s3_bucket

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


def fields(reference: str) -> dict[str, Any]:
    return merged(read_recipe(reference))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([], {}),
        ([{"a": 1}], {"a": 1}),
        ([{"a": 1, "b": 1}, {"b": 2}], {"a": 1, "b": 2}),
        ([{"s": {"x": 1, "y": 1}}, {"s": {"y": 2, "z": 2}}], {"s": {"x": 1, "y": 2, "z": 2}}),
        ([{"s": {"o": {"p": 1}}}, {"s": {"o": {"q": 2}}}], {"s": {"o": {"p": 1, "q": 2}}}),
        ([{"s": {"o": {"p": 1}, "x": 1}}, {"s": {"o": {}}}], {"s": {"o": {}, "x": 1}}),
        ([{"l": [1, 2]}, {"l": [3]}], {"l": [3]}),
        ([{"a": {"x": 1}}, {"a": 2}], {"a": 2}),
        ([{"a": 2}, {"a": {"x": 1}}], {"a": {"x": 1}}),
        ([{"s": {"x": 1}}, {"a": 0}, {"s": {"x": None}}], {"s": {"x": None}, "a": 0}),
    ],
)
def test_later_layers_win_field_by_field(layers: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    given = [Layer(str(number), layer) for number, layer in enumerate(layers)]
    before = repr(given)
    assert merged(given) == expected
    assert repr(given) == before


def test_bases_are_read_first_and_own_fields_win(write: Write) -> None:
    write("low.yaml", "a: low\nb: low\nc: low\ns: {x: low, y: low}\n")
    write("more/beside.yaml", "d: beside\n")
    write("more/middle.yml", "extends: [../low.yaml, beside.yaml]\nb: middle\nc: middle\ns: {y: middle}\n")
    top = write("top.yaml", "c: top\nextends: more/middle.yml\n")
    layers = read_recipe(top)
    assert [Path(layer.recipe).name for layer in layers] == ["low.yaml", "beside.yaml", "middle.yml", "top.yaml"]
    assert all("extends" not in layer.fields for layer in layers)
    assert merged(layers) == {"a": "low", "b": "middle", "c": "top", "d": "beside", "s": {"x": "low", "y": "middle"}}


def test_of_several_bases_the_later_wins_and_one_may_come_twice(write: Write) -> None:
    write("shared.yaml", "a: shared\n")
    write("one.yaml", "extends: shared.yaml\na: one\nb: one\n")
    write("two.yaml", "extends: shared.yaml\nb: two\n")
    assert fields(write("top.yaml", "extends: [one.yaml, two.yaml]\n")) == {"a": "shared", "b": "two"}
    assert fields(write("turned.yaml", "extends: [two.yaml, one.yaml]\n")) == {"a": "one", "b": "one"}
    assert fields(write("none.yaml", "extends: []\na: 1\n")) == {"a": 1}


def test_a_relative_location_is_of_the_recipes_folder_wherever_the_job_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("runs/base.yaml", "a: 1\n")
    write("base.yaml", "a: the wrong one\n")
    write("runs/top.yaml", "extends: base.yaml\n")
    absolute = write("elsewhere/top.yaml", f"extends: {tmp_path}/runs/top.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert fields("runs/top.yaml") == fields(absolute) == {"a": 1}
    monkeypatch.chdir(tmp_path / "runs")
    assert fields("top.yaml") == {"a": 1}


def test_names_and_files_extend_each_other(write: Write) -> None:
    top = write("top.yaml", "extends: [resnet50, neighbour]\nbackbone: {image_size: 96}\n")
    assert [layer.recipe for layer in read_recipe(top)] == ["resnet50", "neighbour", top]
    found = fields(top)
    assert (found["backbone"]["name"], found["backbone"]["image_size"]) == ("resnet50.tv_in1k", 96)
    assert found["num_cached_views"] == 16


def test_a_file_of_a_packaged_name_is_a_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("paper.yaml", "a: 1\n")
    monkeypatch.chdir(tmp_path)
    assert fields("paper.yaml") == {"a": 1}
    assert "a" not in fields("paper")


def test_circles_are_refused_naming_the_chain(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "extends: [paper, sub/c.yaml]\n")
    write("sub/c.yaml", f"extends: {tmp_path}/b.yaml\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe("a.yaml")
    again = f"{tmp_path}/b.yaml"
    assert str(caught.value) == f"recipe {again} extends itself: a.yaml -> b.yaml -> sub/c.yaml -> {again}"
    write("self.yaml", "extends: self.yaml\n")
    with pytest.raises(ConfigError, match=r"^recipe self.yaml extends itself: self.yaml -> self.yaml$"):
        read_recipe("self.yaml")


def test_a_circle_through_a_link_is_found(write: Write, tmp_path: Path) -> None:
    top = write("top.yaml", "extends: here/top.yaml\n")
    (tmp_path / "here").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="extends itself"):
        read_recipe(top)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: 3", "recipe {top}: extends 3: expected a recipe or a list of recipes"),
        ("extends:", "recipe {top}: extends None: expected a recipe or a list of recipes"),
        ("extends: [paper, 3]", "recipe {top}: extends ['paper', 3]: expected a recipe or a list of recipes"),
        ("extends: {a: b}", "recipe {top}: extends {{'a': 'b'}}: expected a recipe or a list of recipes"),
        ("extends: gone.yaml", "recipe {folder}/gone.yaml: no such file (extended by {top})"),
        ("extends: folder.yaml", "recipe {folder}/folder.yaml: "),
        ("extends: parti", "unknown recipe 'parti': did you mean parity? packaged are ablation_no_kl, "),
        ("extends: ../recipes/paper", "unknown recipe '../recipes/paper': packaged are ablation_no_kl, "),
        ("extends: ''", "unknown recipe '': packaged are ablation_no_kl, "),
    ],
)
def test_what_cannot_be_extended_is_one_line(write: Write, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    top = write("top.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(top)
    assert str(caught.value).startswith(message.format(top=top, folder=tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_all_and_the_closest() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe("clip_vit_bse")
    assert f"'clip_vit_bse': did you mean clip_vit_base? packaged are {', '.join(packaged_names())};" in str(
        caught.value
    )


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unsupported location 'http://host/a.yaml'"):
        read_recipe("http://host/a.yaml")


def test_packaged_names_are_the_files() -> None:
    folder = Path(__file__).parents[2] / "jobs" / "recipes"
    assert set(packaged_names()) == {path.stem for path in folder.glob("*.yaml")}
    assert list(packaged_recipes()) == packaged_names() == sorted(packaged_names())


def test_recipes_in_a_bucket_extend_their_neighbors(s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/recipes/low.yaml", b"a: low\nb: low\n")
    storage.write_bytes(f"{s3_bucket}/recipes/deep/top.yaml", b"extends: [../low.yaml, neighbour]\nb: top\n")
    layers = read_recipe(f"{s3_bucket}/recipes/deep/top.yaml")
    assert [layer.recipe for layer in layers] == [
        f"{s3_bucket}/recipes/low.yaml",
        "neighbour",
        f"{s3_bucket}/recipes/deep/top.yaml",
    ]
    found = merged(layers)
    assert (found["a"], found["b"], found["neighbors"]) == ("low", "top", 10)
    storage.write_bytes(f"{s3_bucket}/recipes/low.yaml", b"extends: deep/top.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        read_recipe(f"{s3_bucket}/recipes/low.yaml")
