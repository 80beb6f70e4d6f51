"""The manifest of a new dataset: written once, and never over another one.

Knows nothing of how shards came to be there.
"""

from cibhash.errors import AlreadyExists, NotFound
from cluster.manifests import DatasetManifest, create_manifest, load_manifest
from cluster.telemetry import log


def existing_dataset(uri: str) -> DatasetManifest | None:
    """The manifest of the dataset at `uri`, if there is one."""
    try:
        return load_manifest(DatasetManifest, uri)
    except NotFound:
        return None


def refuse_other(uri: str, found: DatasetManifest | None, manifest: DatasetManifest) -> None:
    """Does nothing where no dataset is, or the same one.

    Raises:
        AlreadyExists: another one; names both digests.
    """
    if found is not None and found.digest != manifest.digest:
        raise AlreadyExists(
            f"{uri}: holds another dataset, {found.digest[:16]}..., asked for {manifest.digest[:16]}...: "
            "choose another output"
        )


def commit_dataset(job: str, uri: str, manifest: DatasetManifest, found: DatasetManifest | None) -> None:
    """Makes the dataset complete, unless it is.

    Args:
        job: For the log.
        uri: Of the dataset.
        manifest: What it is to hold.
        found: The manifest that was there before, already compared.

    Raises:
        AlreadyExists: another writer has meanwhile committed another dataset.
    """
    if found is None:
        try:
            create_manifest(uri, manifest)
            return
        except AlreadyExists:
            refuse_other(uri, load_manifest(DatasetManifest, uri), manifest)
    log(f"{job}: already complete", dataset=uri)
