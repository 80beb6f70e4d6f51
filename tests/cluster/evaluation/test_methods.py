"""Names of encoders: what tells all methods of a report apart is taken, the rest is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.evaluation.methods import check_names, method_name
from cluster.evaluation_config import ComparedTables, EvaluateConfig
from jobs.config_loader import load_config

NEEDED = {"queries": "q", "database": "d", "output": "o"}


def test_compared_tables_come_from_name_and_two_locations() -> None:
    argv = ["--queries", "q", "--database", "d", "--output", "o", "--name", "Ours", "--compare"]
    texts = ["Paper, 64 bits=s3://b/run=3/q, s3://b/run=3/d", "Other=q,d"]
    config = load_config(EvaluateConfig, [*argv, *texts], "cibhash evaluate")
    assert (config.name, config.compare) == ("Ours", tuple(texts))
    assert config.compared_tables == (
        ComparedTables("Paper, 64 bits", "s3://b/run=3/q", "s3://b/run=3/d"),
        ComparedTables("Other", "q", "d"),
    )
    assert EvaluateConfig(**NEEDED).name == "CIBHash"
    assert EvaluateConfig(**NEEDED, compare=("n" * 40 + "=q,d",)).compared_tables[0].name == "n" * 40


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"compare": ("paper",)}, "compare 'paper': expected NAME=QUERIES,DATABASE"),
        ({"compare": ("paper=q",)}, "compare 'paper=q': expected NAME=QUERIES,DATABASE"),
        ({"compare": ("paper=q,",)}, "compare 'paper=q,': expected"),
        ({"compare": ("paper=q,d,e",)}, "compare 'paper=q,d,e': expected"),
        ({"compare": (" =q,d",)}, "compare ' =q,d': expected"),
        ({"compare": ("n" * 41 + "=q,d",)}, "41 characters, expected 1 to 40"),
        ({"compare": ("pa\nper=q,d",)}, r"compare 'pa\nper': 6 characters, expected 1 to 40 printable ones"),
        ({"compare": ("a=q,d", "A =e,f")}, "compare 'A': the name is taken"),
        ({"compare": ("ours=q,d",), "name": "Ours"}, "compare 'ours': the name is taken by the main encoder"),
        ({"compare": ("cibhash=q,d",), "name": "Ours"}, "compare 'cibhash': a built-in method"),
        ({"compare": ("PCA-itq=q,d",)}, "compare 'PCA-itq': a built-in method"),
        ({"compare": ("random_hyperplanes=q,d",)}, "compare 'random_hyperplanes': a built-in method"),
        ({"compare": ("Float features, cosine=q,d",)}, "a built-in method"),
        ({"compare": ("Paper, Asymmetric=q,d",)}, "a built-in method"),
        ({"name": ""}, "name '': 0 characters"),
        ({"name": "n" * 41}, "41 characters"),
        ({"name": "itq"}, "name 'itq': a built-in method"),
    ],
)
def test_names_that_cannot_work_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluateConfig(**NEEDED, **fields)
    assert named in str(caught.value)


def test_names_that_pass_tell_all_methods_apart() -> None:
    check_names("cibhash", ("Paper", "Paper 2"))
    methods = ["cibhash", "cibhash-asymmetric", "Paper", "Paper, asymmetric", "itq", "random_hyperplanes"]
    assert [method_name(one, "Ours") for one in methods] == [
        "Ours",
        "Ours, asymmetric",
        "Paper",
        "Paper, asymmetric",
        "PCA-ITQ",
        "Random hyperplanes",
    ]
