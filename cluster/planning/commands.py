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
    for name, value in chosen.parameters.items():
        index += [f"--{chosen.kind}.{name.replace('_', '-')}", str(value)]
    if chosen.bits != table_bits:
        index += ["--bits", str(chosen.bits)]
    index += ["--shards", str(chosen.shards)]
    return shlex.join(index), shlex.join(["cibhash", "serve", "--index", "INDEX", "--replicas", str(chosen.replicas)])
