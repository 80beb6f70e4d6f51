"""Numbers published under the protocol that an evaluation names, and whether the evaluation is of that protocol.

Knows nothing of how results are shown.
"""

from cibhash.errors import ConfigError
from cluster.evaluation.plan import EvaluationPlan
from cluster.evaluation.results import NamedProtocol
from cluster.evaluation_config import EvaluateConfig
from cluster.reproduction.paper_table import find_protocol, load_table


def named_protocol(config: EvaluateConfig, plan: EvaluationPlan) -> NamedProtocol | None:
    """Looks the protocol up; None where none is named.

    Raises:
        ConfigError: there is none of that name, or it has another k.
    """
    if not config.protocol:
        return None
    table = load_table()
    protocol = find_protocol(table, config.protocol)
    if config.k != protocol.k:
        raise ConfigError(f"k {config.k}: protocol {config.protocol} is mAP@{protocol.k}: give --k {protocol.k}")
    rows = {"query": plan.queries.rows, "database": plan.database.rows}
    deviations = tuple(
        f"{rows[split]:,} images in {split}, the protocol has {size:,}"
        for split, size in protocol.sizes.items()
        if split in rows and rows[split] != size
    )
    return NamedProtocol(
        name=config.protocol,
        title=protocol.title,
        about=protocol.about,
        k=protocol.k,
        published=table.published_for(config.protocol),
        deviations=deviations,
    )
