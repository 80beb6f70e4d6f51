"""What of a row is at hand: the datasets of its protocol below a folder, and the weights of its backbone.

Knows nothing of training. Every reason for which something is not at hand is one sentence for a person.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from cibhash.errors import CIBHashError
from cibhash.specs import BackboneSpec
from cluster import storage
from cluster.datasets import find_dataset
from cluster.manifests import DatasetManifest, load_manifest
from cluster.packing.split_identity import SplitManifest
from cluster.reproduction.hub import hub_problem
from cluster.reproduction.published import Protocol


@dataclass(frozen=True)
class Data:
    """The datasets of one protocol."""

    folder: str
    datasets: Mapping[str, DatasetManifest]
    """By split; those that are there."""
    reason: str
    """Why a row cannot run on them; empty: it can."""
    split: str = ""
    """What the split is called, with the start of its checksum; empty where that is not recorded."""
    deviations: tuple[str, ...] = ()
    """In what they are not the protocol, so that results are not held against published ones."""

    def uri(self, split: str) -> str:
        """Where the dataset of a split is."""
        return storage.join(self.folder, split)


def find_data(data: str, name: str, protocol: Protocol, splits: tuple[str, ...]) -> Data:
    """Looks for the datasets of a protocol at DATA/name.

    Args:
        data: Folder of all benchmarks.
        name: Of the protocol.
        protocol: What they should be.
        splits: Datasets that are needed.
    """
    folder, found = storage.join(storage.absolute(data), name), {}
    try:
        for part in splits:
            if (manifest := find_dataset(storage.join(folder, part))) is not None:
                found[part] = manifest
        split = _split(folder)
    except CIBHashError as error:
        return Data(folder, found, str(error))
    missing = [part for part in splits if part not in found]
    if len(missing) == len(splits):
        return Data(folder, found, f"no data at {folder}: {protocol.pack} --output {folder}")
    if missing:
        return Data(folder, found, f"{folder} has no complete dataset {' and '.join(missing)}")
    if empty := [part for part in splits if not found[part].num_samples]:
        return Data(folder, found, f"{storage.join(folder, empty[0])} has no images")
    if split is None:
        return Data(folder, found, "", "", ("there is no split.json: which images these are is not recorded",))
    if split.name not in protocol.splits:
        return Data(folder, found, f"{folder} is split {split.name}, expected {' or '.join(protocol.splits)}")
    deviations = tuple(
        f"{found[part].num_samples:,} images in {part}, the protocol has {size:,}"
        for part, size in protocol.sizes.items()
        if part in found and found[part].num_samples != size
    )
    return Data(folder, found, "", f"{split.name}, {split.sha256[:12]}", deviations)


def _split(folder: str) -> SplitManifest | None:
    """What the split is; None where it is not recorded."""
    if not storage.exists(storage.join(folder, SplitManifest.file_name)):
        return None
    return load_manifest(SplitManifest, folder)


@dataclass(frozen=True)
class Weights:
    """Where the weights of a backbone are."""

    weights: str
    """As in `BackboneSpec.weights`: `hub`, `none`, or a file."""
    reason: str
    """Why they cannot be had; empty: they can."""


def find_weights(given: str, backbone: BackboneSpec, *, offline: bool) -> Weights:
    """Looks for the weights of a backbone: the file given, one of the folder given, the recipe's own file, the hub.

    Args:
        given: A safetensors file, a folder of them, or empty.
        backbone: As the recipe has it.
        offline: The hub is not asked.
    """
    if backbone.weights == "none":
        return Weights("none", "")
    from_hub = backbone.weights == "hub"
    wanted = f"{backbone.name}.safetensors" if from_hub else backbone.weights.rpartition("/")[2]
    places = []
    if given:
        places.append(given if given.rpartition("/")[2] == wanted else storage.join(given, wanted))
    if not from_hub:
        places.append(backbone.weights)
    try:
        for place in places:
            if storage.exists(place):
                return Weights(storage.absolute(place), "")
        problem = _hub_problem(backbone.name, offline) if from_hub else ""
    except CIBHashError as error:
        return Weights("", str(error))
    if from_hub and not problem:
        return Weights("hub", "")
    where = f"no weights: {wanted} is not {'in ' + given if given else 'given (--weights)'}"
    return Weights("", f"{where}, and of timm's hub: {problem}" if from_hub else where)


@functools.cache
def _hub_problem(model: str, offline: bool) -> str:
    return hub_problem(model, offline=offline)
