"""`http`: one request for each row."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from flowmesh.operators.python import DETERMINISM, Effect
from flowmesh.spec.operator import Columns, Determinism, Operator, Params, Port

_STARTS_RIGHT = re.compile(r"https?://|\s*\{[{%]")


class HttpParams(Params):
    """Send a request for each row and keep what is answered."""

    url: Annotated[
        str,
        Field(min_length=1, max_length=8192, description="Template of the address, http or https."),
    ]
    method: Annotated[
        Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        Field(description="Method of the request."),
    ] = "GET"
    headers: Annotated[
        dict[str, str],
        Field(
            max_length=64,
            description="Header to template. They are stored with the run: no secrets here.",
        ),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    body: Annotated[
        str | dict[str, Any] | list[Any] | None,
        Field(description="Body of the request: a text as it is, anything else as JSON; templates"),
    ] = None
    effect: Annotated[
        Effect | None,
        Field(
            description=(
                "`pure`: the answer never changes, so it is kept and shared. `read`: each run asks"
                " afresh. `act`: it changes the world; never shared. By default `read` for GET and"
                " HEAD, `act` for the rest."
            )
        ),
    ] = None
    expect: Annotated[
        Literal["json", "text"], Field(description="How to read the body of the answer.")
    ] = "json"
    into: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,55}$",
            description="Column of the answer's body; `<into>_status` goes along.",
        ),
    ] = "response"
    timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="Seconds for one try, from dialling to last byte.")
    ] = 30.0
    retries: Annotated[
        int,
        Field(
            ge=0,
            le=20,
            description=(
                "Further tries after a lost connection or a status of 408, 429 or 5xx. Requests"
                " that act carry the same Idempotency-Key each time."
            ),
        ),
    ] = 3
    max_bytes: Annotated[
        int, Field(ge=1, le=2**30, description="Longest answer that is accepted, in bytes.")
    ] = 1_048_576

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not _STARTS_RIGHT.match(url):
            raise ValueError(f"must start with http:// or https://, found {url[:40]!r}")
        return url


def effect(params: HttpParams) -> Effect:
    """What a request does to the world, said or by its method."""
    return params.effect or ("read" if params.method in ("GET", "HEAD") else "act")


def _task(params: HttpParams, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    fixed = params.model_dump(exclude={"url", "headers", "body", "into", "effect"})
    filled = {name: rendered[name] for name in ("url", "headers", "body")}
    return {**fixed, **filled, "act": effect(params) == "act"}


def _shape(params: HttpParams, rows: list[dict[str, Any]], sample: int) -> list[dict[str, Any]]:
    return [{params.into: row["body"], f"{params.into}_status": row["status"]} for row in rows]


def _adds(params: HttpParams) -> Columns:
    return (params.into, f"{params.into}_status")


def _determinism(params: HttpParams) -> Determinism:
    return DETERMINISM[effect(params)]


HTTP = Operator(
    name="http",
    version=1,
    summary="Send an HTTP request for each row.",
    params=HttpParams,
    inputs={"rows": Port("table", "one request for each row")},
    grain="row",
    runtime="http",
    entry="flowmesh.runtimes.http:open_http",
    templated=("url", "headers", "body"),
    task=_task,
    shape=_shape,
    adds=_adds,
    limits=("timeout_s",),
    determinism=_determinism,
    max_batch=32,
)
