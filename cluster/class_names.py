"""Names of the labels, for people: `classes.json` in or beside a dataset.

Knows nothing of what is shown with them.
"""

import json
from collections.abc import Iterable

from cibhash.errors import NotFound
from cluster import storage
from cluster.packing.pack import CLASSES_FILE
from cluster.telemetry import log


def classes_uris(dataset_uris: Iterable[str]) -> list[str]:
    """Where names of labels may lie: in each dataset, or beside it."""
    folders = [folder for uri in dataset_uris for folder in (uri, uri.rpartition("/")[0])]
    usable = [folder for folder in folders if folder not in ("", "s3:/") and not folder.endswith(".tar")]
    return [storage.join(folder, CLASSES_FILE) for folder in dict.fromkeys(usable)]


def class_names(dataset_uris: Iterable[str]) -> dict[str, str]:
    """Names by label, from the first file there is; a broken one is a line in the log. Empty: there is none."""
    for uri in classes_uris(dataset_uris):
        try:
            content = json.loads(storage.read_bytes(uri))
            return {str(label): str(name) for label, name in content.items()}
        except NotFound:
            continue
        except (ValueError, AttributeError, RecursionError):
            log("not an object of class names", file=uri)
    return {}
