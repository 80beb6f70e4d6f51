"""What a person writes to evaluate retrieval.

Knows nothing of the command line and of how anything is measured.
"""

from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveInt, model_validator

from cluster.config import CodeLengths, JobConfig, Seed, check_lengths
from cluster.evaluation.methods import OUR_NAME, check_names


class ComparedTables(NamedTuple):
    """The code tables of an encoder to compare with, and what it is called."""

    name: str
    queries: str
    database: str


def _compared_tables(text: str) -> ComparedTables:
    """Splits `NAME=QUERIES,DATABASE`."""
    name, _, tables = text.partition("=")
    parts = [part.strip() for part in (name, *tables.split(","))]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"compare {text!r}: expected NAME=QUERIES,DATABASE, a name and two code tables")
    return ComparedTables(*parts)


class EvaluateConfig(JobConfig):
    """Evaluate retrieval of one code table against another, exactly, and write the report."""

    queries: str
    """Code table of the queries, with labels. With logits too (encoded with --logits), their asymmetric distance is
    evaluated beside the Hamming distance."""
    database: str
    """Code table of the database, with labels."""
    output: str
    """Where metrics.json, queries.parquet, metrics.md and report.html go."""
    k: PositiveInt = 1000
    """Ranks of mAP@k, precision@k and recall@k."""
    bits: CodeLengths = ()
    """Prefix lengths to evaluate; default: those the encoder was trained for."""
    baseline_fit: str = ""
    """Code table with features to fit random hyperplanes, PCA-sign and PCA-ITQ on; they are then evaluated on the
    features of queries and database (all three encoded with --features)."""
    seed: Seed = 0
    """Seed of the baselines."""
    stored_order: bool = False
    """Evaluate mAP@k with equal distances in the order of ids too, as code that sorts a stored database does: for
    comparison with published numbers. It ranks, so it costs more than all the rest. Where the tables have features,
    also how many of the most similar by these are among the nearest codes."""
    exclude_self: bool = False
    """A query that is in the database too does not count for itself: by id where both tables are of one dataset, else
    by key."""
    exclude: str = ""
    """Parquet or CSV file of more pairs that do not count, with the columns query_id and database_id."""
    index: str = ""
    """An index over the database's codes: how much of the k nearest it finds is measured, against exact search."""
    example_queries: NonNegativeInt = 8
    """Query images shown with their neighbors in the report: half of them the best, half the worst."""
    title: str = ""
    """Heading of the report; default: the dataset's name."""
    name: str = OUR_NAME
    """What tables and plots call the encoder of queries and database."""
    protocol: str = ""
    """Protocol of the tables, as cifar10 (`cibhash reproduce` has the same names): numbers published under it are shown
    beside, with where they are from. k must be the protocol's."""
    compare: tuple[str, ...] = ()
    """Other encoders to show beside it, each as NAME=QUERIES,DATABASE: its code tables of the same images. Lengths are
    compared that both were trained for, over the same queries."""

    @property
    def compared_tables(self) -> tuple[ComparedTables, ...]:
        """`compare`, taken apart."""
        return tuple(_compared_tables(text) for text in self.compare)

    @model_validator(mode="after")
    def _check(self) -> "EvaluateConfig":
        check_lengths(self.bits)
        check_names(self.name, tuple(tables.name for tables in self.compared_tables))
        return self
