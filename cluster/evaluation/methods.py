"""What methods are called: keys in `metrics.json`, names in tables and plots.

Knows nothing of what the methods do.
"""

OURS = "cibhash"
ASYMMETRIC = "cibhash-asymmetric"
"""Our codes, with the logits of the queries."""
ITQ = "itq"
PCA_SIGN = "pca_sign"
RANDOM_HYPERPLANES = "random_hyperplanes"
BASELINE_NAMES = {ITQ: "PCA-ITQ", PCA_SIGN: "PCA-sign", RANDOM_HYPERPLANES: "Random hyperplanes"}
FLOAT_NAME = "Float features, cosine"
OUR_NAME = "CIBHash"
"""What the main encoder is called where nobody names it."""
MAX_NAME = 40
_SUFFIX = ", asymmetric"


def asymmetric_name(name: str) -> str:
    """What an encoder's codes with the logits of the queries are called."""
    return f"{name}{_SUFFIX}"


def method_name(method: str, main: str) -> str:
    """How tables and plots call a method of the results.

    Args:
        method: Its key; a compared encoder's is its name.
        main: Name of the main encoder.
    """
    return {OURS: main, ASYMMETRIC: asymmetric_name(main), **BASELINE_NAMES}.get(method, method)


def check_names(main: str, compared: tuple[str, ...]) -> None:
    """Refuses names of encoders under which tables and plots would not tell all methods apart, whatever their case.

    Raises:
        ValueError: a name is empty, too long, not printable, another method's, or given twice.
    """
    taken = {name.casefold() for name in (ASYMMETRIC, *BASELINE_NAMES, *BASELINE_NAMES.values(), FLOAT_NAME)}
    for field, name in (("name", main), *(("compare", name) for name in compared)):
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"{field} {name!r}: {len(name)} characters, expected 1 to {MAX_NAME} printable ones")
        folded = name.casefold()
        if folded in taken or folded.endswith(_SUFFIX) or (field == "compare" and folded == OURS):
            raise ValueError(f"{field} {name!r}: a built-in method has this name, choose another")
    named = [main.casefold()]
    for name in compared:
        if name.casefold() in named:
            raise ValueError(f"compare {name!r}: the name is taken by the main encoder (--name) or given twice")
        named.append(name.casefold())
