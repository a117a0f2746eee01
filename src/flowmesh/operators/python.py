"""`python` and `python_table`: a function of the user's, from a file whose bytes are hashed."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from flowmesh.spec.operator import Columns, Determinism, Operator, Params, Port

#: What work does to the world, and what that makes of its results.
Effect = Literal["pure", "read", "act"]
DETERMINISM: Mapping[Effect, Determinism] = {"pure": "pure", "read": "sampled", "act": "effect"}

_ENTRY = "flowmesh.runtimes.python:open_python"


class PythonTableParams(Params):
    """Call a function with all rows of a table; it returns the rows of the new one."""

    function: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$",
            description=(
                "Name of the function in the file. It is called in no set order and must not"
                " remember its calls: what it returns is kept and shared."
            ),
        ),
    ]
    args: Annotated[
        dict[str, Any], Field(description="Further arguments of the function, by keyword.")
    ] = {}  # noqa: RUF012 (pydantic copies it)
    timeout_s: Annotated[
        float,
        Field(gt=0, le=86_400, description="Seconds after which a call is killed."),
    ] = 60.0
    memory_mb: Annotated[
        int,
        Field(
            ge=64,
            le=1_048_576,
            description="Most address space of the function's process, in units of 10^6 bytes.",
        ),
    ] = 2048
    effect: Annotated[
        Effect,
        Field(
            description=(
                "`pure`: equal rows give equal results, which are kept and shared. `read`: it looks"
                " at the world, so each run calls afresh. `act`: it changes the world; never shared"
            )
        ),
    ] = "pure"


class PythonParams(PythonTableParams):
    """Call a function with each row; it returns columns to add, a list of rows, or None."""

    columns: Annotated[
        list[str] | None,
        Field(
            max_length=256,
            description=(
                "Columns that the function sees; all if not given. Fewer are better: a row whose"
                " other columns change is not computed again."
            ),
        ),
    ] = None


def _task(params: PythonTableParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    # What it sees is in the row. Whether it acts decides how often it may be called.
    task = params.model_dump(exclude={"columns", "effect"})
    return {**task, "act": True} if params.effect == "act" else task


def _sees(params: PythonParams) -> Columns:
    return None if params.columns is None else tuple(params.columns)


def _determinism(params: PythonTableParams) -> Determinism:
    return DETERMINISM[params.effect]


_FILE = Port("file", "a Python file; it can import what is installed on the worker")

PYTHON = Operator(
    name="python",
    version=1,
    summary="Call a function of yours with each row.",
    params=PythonParams,
    inputs={"rows": Port("table", "the rows"), "file": _FILE},
    grain="row",
    runtime="python",
    entry=_ENTRY,
    sees=_sees,
    task=_task,
    adds=lambda params: None,
    limits=("timeout_s", "memory_mb"),
    determinism=_determinism,
    max_batch=64,
)

PYTHON_TABLE = Operator(
    name="python_table",
    version=1,
    summary="Call a function of yours with a whole table.",
    params=PythonTableParams,
    inputs={"rows": Port("table", "the rows"), "file": _FILE},
    grain="whole",
    runtime="python",
    entry=_ENTRY,
    task=_task,
    columns=lambda params, inputs: {"rows": None},
    limits=("timeout_s", "memory_mb"),
    determinism=_determinism,
)
