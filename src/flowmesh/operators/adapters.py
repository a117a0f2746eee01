"""Operators that make whole models of adapters, and models that other programs can take.

`runtimes/merging.py` carries them out.
"""

from typing import Annotated, Literal

from pydantic import Field

from flowmesh.spec.operator import Operator, Params, Port

StoredFormat = Literal["base", "float32", "bfloat16", "float16"]

_DTYPE = "Numeric format of the weights in the files; `base` keeps that of the model's files."
_MODEL_OUT = {"model": "model"}
_PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
)


class MergeAdapterParams(Params):
    """Add a LoRA adapter to the weights of its base for good."""

    dtype: Annotated[StoredFormat, Field(description=_DTYPE)] = "base"


class ExportParams(Params):
    """Write a model, with an adapter merged into it if one is given, for other programs."""

    format: Annotated[
        Literal["safetensors"],
        Field(description="`safetensors`: a Hugging Face directory, without code or pickles."),
    ] = "safetensors"
    dtype: Annotated[StoredFormat, Field(description=_DTYPE)] = "base"
    max_shard_size: Annotated[
        str,
        Field(
            pattern=r"^[1-9][0-9]{0,5}(KB|MB|GB)$",
            description="Weights beyond this size go into several files, as in `5GB` or `500MB`.",
        ),
    ] = "5GB"


MERGE_ADAPTER = Operator(
    name="merge_adapter",
    version=1,
    summary="Add a LoRA adapter to the weights of its base: a model that needs no adapter.",
    params=MergeAdapterParams,
    inputs={
        "model": Port("model", "the base that the adapter was trained for"),
        "adapter": Port("adapter", "the LoRA adapter"),
    },
    grain="whole",
    runtime="trl",
    entry="flowmesh.runtimes.merging:open_merging",
    preload=_PRELOAD,
    outputs=lambda params: _MODEL_OUT,
)

EXPORT = Operator(
    name="export",
    version=1,
    summary="Write a model as files that other programs take, an adapter merged into it.",
    params=ExportParams,
    inputs={
        "model": Port("model", "the model, or the base of the adapter"),
        "adapter": Port("adapter", "a LoRA adapter to merge first", required=False),
    },
    grain="whole",
    runtime="trl",
    entry="flowmesh.runtimes.merging:open_merging",
    preload=_PRELOAD,
    outputs=lambda params: _MODEL_OUT,
)
