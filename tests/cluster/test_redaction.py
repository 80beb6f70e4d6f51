"""Credentials vanish from text, and nothing else does."""

import pytest

from cluster.redaction import HIDDEN, SECRET_SETTINGS, redacted
from cluster.telemetry import log


def test_values_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(SECRET_SETTINGS):
        monkeypatch.setenv(name, f"se/cr+et-{number}-value\n")
    text = " ".join(f"x=se/cr+et-{number}-value," for number in range(len(SECRET_SETTINGS)))
    assert redacted(text) == " ".join([f"x={HIDDEN},"] * len(SECRET_SETTINGS))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at http://me:pass@host:9000/bucket/a", "at http://[hidden]@host:9000/bucket/a"),
        ("'s3://KEY:sec/ret+x@bucket/a' and", "'s3://[hidden]@bucket/a' and"),
        ("the key AKIAIOSFODNN7EXAMPLE is", "the key [hidden] is"),
        ("GET /a?X-Amz-Signature=0a1b&x=1", "GET /a?X-Amz-Signature=[hidden]&x=1"),
        ("Credential=AK/2026/s3, SignedHeaders=host", "Credential=[hidden], SignedHeaders=host"),
        ('{"x-amz-security-token": "abc", "b": 1}', '{"x-amz-security-token": "[hidden]", "b": 1}'),
        ("ValueError: Invalid header value b'to\\nken'", "ValueError: Invalid header value [hidden]"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c: no such object",
        "http://host:9000/bucket/mail@home.png",
        "/data/me@home/a.tar at offset 512",
        "sha256 d2a84f4b8b650937..., its manifest says ef94232f3a...",
        "an unexpected signature of the function",
        "",
    ],
)
def test_other_text_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")  # far too short to be one
    assert redacted(text) == text


def test_log_lines_are_redacted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    log("failed", reason="HTTPError: key wJalrXUtnFEMI at http://a:b@host/")
    assert capsys.readouterr().err.endswith(" failed reason=HTTPError: key [hidden] at http://[hidden]@host/\n")
