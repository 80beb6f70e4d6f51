"""The table of findings is whole: everything that is told anywhere has its line."""

from typing import get_args

from cibhash.shard_scan import LabelKind, LayoutKind
from cibhash.tar_members import DamageKind
from cluster.doctor.findings import KINDS, SEVERITIES


def test_every_problem_of_a_shard_has_its_line() -> None:
    told = {*get_args(DamageKind), *get_args(LayoutKind), *get_args(LabelKind)}
    assert told <= KINDS.keys()


def test_every_line_says_what_it_is_and_what_happens() -> None:
    for kind in KINDS.values():
        assert kind.severity in SEVERITIES
        assert kind.meaning
        assert kind.consequence
