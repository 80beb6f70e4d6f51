"""Takes credentials out of text that is about to be logged, raised or reported.

Knows nothing of where the text comes from. What is known to be a secret (a value of the environment) is replaced
wherever it stands; what looks like one (an AWS key id, a signature, the user part of a URL) by its form.
"""

import os
import re

HIDDEN = "[hidden]"
SECRET_SETTINGS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "RAY_AUTH_TOKEN",
    "HF_TOKEN",
)
_SHORTEST = 8
"""A shorter value is a word of some test, and would be replaced inside other words."""
_FORMS = (
    (re.compile(r"(?<=\b[sS]3://)[^\s:/@]+:[^\s@]+(?=@)"), HIDDEN),  # a secret key may hold slashes
    (re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (
        re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-?token)[\"']?\s*[=:]\s*[\"']?)[^\s&,;<>'\"]+"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)(invalid header value )b?(['\"]).*\2"), rf"\1{HIDDEN}"),
)


def redacted(text: str) -> str:
    """The text without credentials."""
    for name in SECRET_SETTINGS:
        secret = os.environ.get(name, "").strip()
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text
