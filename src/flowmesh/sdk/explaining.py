"""Questions about plans and reasons, as a client asks them."""

import re
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from flowmesh.base.errors import Problem, SpecError
from flowmesh.planning import OfferBody, PlanRequest, PlanView, RunExplanation, TaskExplanation
from flowmesh.wire import CreateRun

if TYPE_CHECKING:
    from flowmesh.sdk.client import Client

#: A plan looks up every task of what is known of a run.
_PLAN_S = 600.0
#: How long a server that was just started may take for its first worker.
_WORKER_S = 10.0
#: How a task may be named.
_NAMED = "RUN:STEP:ROW, or the first digits of a fingerprint"
#: What stands behind a step's name: a row, and a sample of it.
_PLACE = re.compile(r"(.+):(\d{1,9})(?:\.(\d{1,9}))?")


def look_ahead(client: "Client", request: CreateRun, offers: list[OfferBody]) -> PlanView:
    """What the run of `request` would take; an embedded server is given time for a worker."""
    deadline = time.monotonic() + (_WORKER_S if client.is_embedded else 0.0)
    while time.monotonic() < deadline and not client.workers():
        time.sleep(0.1)
    body = PlanRequest(**request.model_dump(), offers=offers)
    answer = client.transport.request("POST", "/v1/plan", body=body, timeout_s=_PLAN_S)
    return PlanView.model_validate_json(answer)


def explain_run(client: "Client", run: str) -> RunExplanation:
    """Raises NotFound."""
    answer = client.transport.request("GET", f"/v1/runs/{quote(run, safe='')}/explain")
    return RunExplanation.model_validate_json(answer)


def explain_task(client: "Client", task: str) -> TaskExplanation:
    """Of a fingerprint's beginning, or `RUN:STEP[:ROW[.SAMPLE]]`. Raises NotFound, SpecError."""
    run, colon, rest = task.partition(":")
    if not run or "/" in run:
        raise SpecError(Problem(f"{task!r:.100} is no task; expected {_NAMED}"))
    if not colon:
        answer = client.transport.request("GET", f"/v1/tasks/{quote(task, safe='')}/explain")
        return TaskExplanation.model_validate_json(answer)
    found = _PLACE.fullmatch(rest)
    if found is None and ":" in rest:
        row = rest.rpartition(":")[2]
        message = f"{row!r:.100} is no row: rows and samples are counted from 0; expected {_NAMED}"
        raise SpecError(Problem(message))
    step, row, sample = found.groups("0") if found else (rest, "0", "0")
    path = f"/v1/runs/{quote(run, safe='')}/explain/task"
    params = {"step": step, "row": int(row), "sample": int(sample)}
    answer = client.transport.request("GET", path, params=params)
    return TaskExplanation.model_validate_json(answer)
