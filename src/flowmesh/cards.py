"""JSON bodies of model cards: all that is known of a tree of weights."""

from typing import Any

from pydantic import Field

from flowmesh.wire import Body, ModelEntry, ModelKind


class ModelParent(Body):
    """A tree that weights were made from. `level` is 1 for what their own step read."""

    level: int
    used_as: str
    kind: ModelKind
    digest: str
    names: list[str] = Field(default_factory=list)
    run: str = ""
    step: str = ""


class ModelData(Body):
    """A table that the step which made the weights read; `rows` is -1 where not known."""

    used_as: str
    source: str
    digest: str
    rows: int = -1


class Evaluation(Body):
    """The first row of a `summary` table that a step measured with the weights."""

    step: str
    op: str
    values: dict[str, Any]


class ModelCard(Body):
    """All that is known of a tree of weights.

    `run` to `evaluations` are those of the tenant's newest run that made it, and empty for
    what came from outside. `training` is the first row of that step's `summary` table; where
    that tells no loss, with `last_loss` from its `metrics`.
    """

    what: str
    kind: ModelKind
    digest: str
    size_bytes: int
    names: list[str] = Field(default_factory=list)
    source: str = ""
    history: list[ModelEntry] = Field(default_factory=list)
    run: str = ""
    step: str = ""
    port: str = ""
    op: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    parents: list[ModelParent] = Field(default_factory=list)
    data: list[ModelData] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluations: list[Evaluation] = Field(default_factory=list)
