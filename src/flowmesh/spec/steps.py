"""The steps of a document: operators with their ports and parameters, and loops of steps."""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    StrictInt,
    StrictStr,
    Tag,
    field_validator,
    model_validator,
)

from flowmesh.spec.inputs import Name, Part, Plain
from flowmesh.spec.limits import Linger

STEPS_LIMIT = 1000
MATRIX_LIMIT = 1000
ROUNDS_LIMIT = 100
MEMORY_LIMIT_GB = 100_000

Share = Literal["domain", "tenant", "run", "never"]
OnError = Literal["fail", "skip", "quarantine"]


class Needs(Part):
    """What a step's tasks take of a worker; it changes no result."""

    memory_gb: Annotated[
        float,
        Field(
            gt=0,
            le=MEMORY_LIMIT_GB,
            strict=True,
            description="Memory of one task, in units of 1,000,000,000 bytes.",
        ),
    ]


class Step(Part):
    """One node: an operator, what all steps may say, and the operator's ports and parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    op: Annotated[str, Field(description="The operator.")]
    when: Annotated[
        str | None, Field(description="Condition; the step is skipped where it does not hold.")
    ] = None
    matrix: Annotated[
        dict[Name, Annotated[list[Plain], Field(min_length=1)]] | None,
        Field(min_length=1, description="One step for each combination of these values."),
    ] = None
    on_error: Annotated[OnError, Field(description="What a failed row does to the step.")] = "fail"
    share: Annotated[Share | None, Field(description="Who may share this step's work.")] = None
    reuse: Annotated[
        Literal["samples"] | None, Field(description="Accept samples drawn before.")
    ] = None
    numerics: Annotated[
        Literal["exact"] | None, Field(description="Only engines with exact results.")
    ] = None
    needs: Annotated[
        Needs | None, Field(description="What its tasks take of a worker: `{memory_gb: 8}`.")
    ] = None
    linger: Annotated[
        Linger, Field(description="How long a task may wait for others that fill its batch.")
    ] = "0s"

    @model_validator(mode="before")
    @classmethod
    def _is_no_loop(cls, data: Any) -> Any:
        if isinstance(data, dict) and "loop" in data:
            raise ValueError(
                "a loop cannot stand within a loop; put its steps into the outer one, "
                "or let one loop follow the other"
            )
        return data

    @field_validator("matrix")
    @classmethod
    def _is_small(cls, matrix: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        if matrix is None:
            return None
        combinations = math.prod(len(values) for values in matrix.values())
        if combinations > MATRIX_LIMIT:
            raise ValueError(f"has {combinations} combinations; the limit is {MATRIX_LIMIT}")
        for name, values in matrix.items():
            if len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f"{name!r} holds a value twice")
        return matrix

    @property
    def settings(self) -> dict[str, Any]:
        """Ports and parameters of the operator, as written."""
        return dict(self.model_extra or {})


#: Keys of a step that are not its operator's.
RESERVED = tuple(Step.model_fields)


class Carry(Part):
    """Something that goes from round to round of a loop."""

    start: Annotated[
        str | None,
        Field(
            description=(
                "What the first round has: `${inputs.NAME}`, `${models.NAME}`,"
                " `${steps.NAME.PORT}` of a step outside or the name of a registered model."
                " Without it, ports that are given it are left unbound in round 1."
            )
        ),
    ] = None
    next: Annotated[
        str,
        Field(description="What a round hands on: `${steps.NAME.PORT}` of a step of the loop."),
    ]


class Loop(Part):
    """Steps that are done again and again, each round with what the one before carried on."""

    rounds: Annotated[
        Annotated[StrictInt, Field(ge=1, le=ROUNDS_LIMIT)] | StrictStr,
        Field(description="How many rounds at most, or a reference to an input of type int."),
    ]
    carry: Annotated[
        dict[Name, Carry],
        Field(
            default_factory=dict,
            description="What goes from round to round; the steps know it as `${loop.NAME}`.",
        ),
    ]
    collect: Annotated[
        dict[Name, str],
        Field(
            default_factory=dict,
            description="Name to `${steps.NAME.PORT}` of a step of the loop: of every round.",
        ),
    ]
    until: Annotated[
        str | None,
        Field(description="Condition; after a round where it holds, later rounds are skipped."),
    ] = None
    steps: Annotated[
        dict[Name, Step],
        Field(
            min_length=1,
            max_length=STEPS_LIMIT,
            description="The steps of a round. They see each other and the steps outside.",
        ),
    ]

    @field_validator("carry")
    @classmethod
    def _leaves_the_round(cls, carry: dict[str, Carry]) -> dict[str, Carry]:
        if "round" in carry:
            raise ValueError("${loop.round} is the number of the round; carry under another name")
        return carry

    @model_validator(mode="after")
    def _has_distinct_outputs(self) -> "Loop":
        if both := self.carry.keys() & self.collect.keys():
            raise ValueError(f"{min(both)!r} is both carried and collected; give it two names")
        return self


class LoopStep(Part):
    """A node that is a loop: its outputs are what it carries and collects."""

    loop: Annotated[Loop, Field(description="The steps of a round, and how many rounds.")]
    when: Annotated[
        str | None, Field(description="Condition; the loop is skipped where it does not hold.")
    ] = None


def _kind_of_step(data: Any) -> str:
    is_loop = isinstance(data, LoopStep) or (isinstance(data, dict) and "loop" in data)
    return "(loop)" if is_loop else "(step)"


#: The tags are no keys that a step may have: places in errors stay unambiguous.
AnyStep = Annotated[
    Annotated[Step, Tag("(step)")] | Annotated[LoopStep, Tag("(loop)")],
    Discriminator(_kind_of_step),
]
