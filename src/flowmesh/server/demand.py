"""What the tasks of a batch key ask of a machine, told from the files of their models."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.errors import BlobMissing, DigestMismatch, LimitExceeded, SpecError
from flowmesh.core.records import Demand, Tree
from flowmesh.spec.action import Bound, artifacts_of
from flowmesh.spec.nodes import StepNode
from flowmesh.stores.base import BlobStore
from flowmesh.stores.trees import Manifest, read_manifest

#: Models whose figures are kept.
_KEPT = 1000
#: A configuration that is larger is none.
_CONFIG_LIMIT_BYTES = 1 << 20
#: A manifest may claim any sizes for its files.
_MOST_BYTES = 1 << 53
#: Layers, heads, widths: figures beyond it are errors.
_MOST = 1e6
_NUMBER_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one tree of weights; 0 where its files do not tell.

    Attributes:
        parameters: by the bytes of its weights and the format that its configuration names.
        cache_numbers: kept of each token of a running sequence: keys and values of all layers.
    """

    size_bytes: int = 0
    parameters: float = 0.0
    cache_numbers: float = 0.0


class Models:
    """Figures of the trees in a store, each read once. For several threads."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._known: OrderedDict[str, Figures] = OrderedDict()
        self._lock = Lock()

    def demand(self, node: StepNode, bound: Mapping[str, Bound]) -> Demand:
        """Of the batch key of a step. A model that is lost or damaged tells nothing."""
        op = node.op
        models = dict.fromkeys(_digests(node, bound, "model"))
        figures = {digest: self.figures(digest) for digest in models}
        number_bytes = _NUMBER_BYTES.get(op.engine(node.params).rpartition("/")[2], 2)
        parameters = sum(one.parameters for one in figures.values())
        return Demand(
            operator=f"{op.name}@{op.version}",
            trees=tuple(Tree(digest, one.size_bytes) for digest, one in figures.items()),
            weights_bytes=min(round(parameters * number_bytes), _MOST_BYTES),
            flops_per_token=op.flops_per_parameter * parameters,
            cache_bytes_per_token=number_bytes * sum(one.cache_numbers for one in figures.values()),
            shares_prefixes=op.shares_prefixes,
        )

    def adapters(self, node: StepNode, bound: Mapping[str, Bound]) -> tuple[Tree, ...]:
        """What a machine needs for each task of a step beside the models of its key."""
        digests = dict.fromkeys(_digests(node, bound, "adapter"))
        return tuple(Tree(digest, self.figures(digest).size_bytes) for digest in digests)

    def figures(self, digest: str) -> Figures:
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
        try:
            found = self._read(Digest.parse(digest))
        except (BlobMissing, DigestMismatch, SpecError, LimitExceeded):
            return Figures()  # Whoever runs it says so, or has it made again.
        with self._lock:
            self._known[digest] = found
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found

    def _read(self, digest: Digest) -> Figures:
        manifest = read_manifest(self._store, digest)
        config = self._config(manifest)
        stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        weights_bytes = sum(
            file.digest.size_bytes for file in manifest.files if file.path.endswith(".safetensors")
        )
        parameters = min(weights_bytes, _MOST_BYTES) / _NUMBER_BYTES.get(stored, 4)
        size_bytes = min(manifest.size_bytes, _MOST_BYTES)
        return Figures(size_bytes, parameters, _cache_numbers(config))

    def _config(self, manifest: Manifest) -> dict[str, Any]:
        for file in manifest.files:
            if file.path == "config.json" and file.digest.size_bytes <= _CONFIG_LIMIT_BYTES:
                try:
                    found = msgspec.json.decode(self._store.read(file.digest))
                except msgspec.DecodeError:
                    return {}
                return found if isinstance(found, dict) else {}
        return {}


def _digests(node: StepNode, bound: Mapping[str, Bound], kind: str) -> Iterator[str]:
    for port, one in bound.items():
        if node.op.inputs[port].kind == kind:
            yield from (artifact.digest for artifact in artifacts_of(one))


def _cache_numbers(config: Mapping[str, Any]) -> float:
    """Keys and values of a token in all layers, of a model that writes; 0 of others."""
    names = config.get("architectures")
    if not isinstance(names, list) or not any("ForCausalLM" in str(name) for name in names):
        return 0.0
    layers, heads = _count(config, "num_hidden_layers"), _count(config, "num_attention_heads")
    kept = _count(config, "num_key_value_heads") or heads
    width = _count(config, "head_dim") or (_count(config, "hidden_size") / heads if heads else 0)
    return 2.0 * layers * kept * width


def _count(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    if not isinstance(value, int | float) or not 0 < value <= _MOST:
        return 0.0
    return float(value)
