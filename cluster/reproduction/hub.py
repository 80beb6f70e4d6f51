"""Whether pretrained weights can be had from timm's hub: downloaded before, or to be downloaded within a run.

Knows nothing of rows. Nothing is downloaded here, and no answer is waited for longer than a few seconds.
"""

import threading

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from cibhash.backbones import hub_repository

PATIENCE_S = 4.0
"""So long the hub has to answer, the look-up of its address included."""
_FILES = ("model.safetensors", "pytorch_model.bin")
"""As timm looks for them."""


def hub_problem(model: str, *, offline: bool, patience_s: float = PATIENCE_S) -> str:
    """Why timm's weights of a model cannot be had; empty: they can.

    Args:
        model: A timm model name.
        offline: Only what was downloaded before counts.
        patience_s: Seconds until the hub is given up.

    Raises:
        ConfigError: unknown model.
    """
    repository = hub_repository(model)
    if not repository:
        return "timm has no weights of it"
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in _FILES):
        return ""
    if offline or constants.HF_HUB_OFFLINE:
        return "they were not downloaded before, and the hub is not asked (offline)"
    found: list[str] = []
    # In a thread of its own: the look-up of a name knows no limit.
    thread = threading.Thread(target=_ask, args=(repository, patience_s, found), daemon=True)
    thread.start()
    thread.join(patience_s)
    return found[0] if found else f"the hub does not answer within {patience_s:g} s"


def _ask(repository: str, patience_s: float, found: list[str]) -> None:
    try:
        get_hf_file_metadata(hf_hub_url(repository, _FILES[0]), timeout=patience_s)
        found.append("")
    except Exception as error:  # whatever its HTTP client raises: each means that there is nothing to be had
        found.append(f"the hub cannot be reached ({type(error).__name__})")
