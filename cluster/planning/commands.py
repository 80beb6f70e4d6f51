"""The commands that build and serve what was planned.

Knows nothing of how it was chosen.
"""

import shlex

from cluster.planning.choice import Candidate


def commands_for(chosen: Candidate, codes_uri: str, table_bits: int) -> tuple[str, ...]:
    """`cibhash index ...` and `cibhash serve ...`, as a person types them.

    Args:
        chosen: The layout.
        codes_uri: The corpus' code table.
        table_bits: Length of its codes; a shorter one is asked for by name.
    """
    index = ["cibhash", "index", "--codes", codes_uri, "--output", "INDEX", "--kind", chosen.kind]
    index += [word for name, value in chosen.parameters.items() for word in (f"--{chosen.kind}.{_flag(name)}", value)]
    if chosen.bits != table_bits:
        index += ["--bits", chosen.bits]
    index += ["--shards", chosen.shards]
    serve = ["cibhash", "serve", "--index", "INDEX", "--replicas", chosen.replicas]
    return tuple(shlex.join(map(str, words)) for words in (index, serve))


def _flag(name: str) -> str:
    return name.replace("_", "-")
