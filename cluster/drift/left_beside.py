"""Findings on two encoders that lie beside an index, for whoever goes from one version to another.

Knows nothing of how they are found. Their name is made of the two encoders' digests, so the versions need not know.
"""

from cibhash.errors import NotFound
from cluster import storage
from cluster.drift.findings import Findings
from cluster.manifests import load_manifest

_FOLDER = "drift"


def leave_beside(index_uri: str, findings: Findings) -> str:
    """Writes the findings below the index's directory; returns where."""
    location = storage.join(_place(index_uri, findings.old.encoder_digest, findings.new.encoder_digest), "drift.json")
    storage.write_bytes(location, findings.to_json())
    return location


def findings_of(index_uri: str, old_encoder: str, new_encoder: str) -> Findings | None:
    """What was found of two encoders, by their digests; None: nobody has compared them.

    Raises:
        DataError: the file is broken.
    """
    if old_encoder == new_encoder:
        return None
    try:
        return load_manifest(Findings, _place(index_uri, old_encoder, new_encoder))
    except NotFound:
        return None


def _place(index_uri: str, old_encoder: str, new_encoder: str) -> str:
    return storage.join(index_uri, f"{_FOLDER}/{old_encoder[:32]}-{new_encoder[:32]}")
