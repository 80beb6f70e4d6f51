"""The code tables that an index was built from, as they were then and as they are now.

Knows nothing of parts and shards.
"""

from cibhash.errors import NotFound
from cluster.code_versions import find_codes, open_codes
from cluster.index.versions import OpenIndex
from cluster.manifests import CodeManifest, CodeTableRef


def recorded_tables(index: OpenIndex) -> dict[str, CodeManifest]:
    """The versions of the tables that the index records, by URI.

    Raises:
        NotFound: a version is gone; says what to do.
    """
    return {ref.uri: _found(index, ref, current=False) for ref in index.manifest.code_tables}


def current_tables(index: OpenIndex) -> dict[str, CodeManifest]:
    """The current versions of the same tables, by URI.

    Raises:
        NotFound: a table is gone; says what to do.
    """
    return {ref.uri: _found(index, ref, current=True) for ref in index.manifest.code_tables}


def _found(index: OpenIndex, ref: CodeTableRef, *, current: bool) -> CodeManifest:
    try:
        return open_codes(ref.uri) if current else find_codes(ref.uri, ref.digest, ref.version)
    except NotFound as error:
        raise NotFound(f"{error}; {index.base_uri} was built from it and cannot be continued: build it anew") from None
