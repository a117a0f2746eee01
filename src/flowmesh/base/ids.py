"""Typed ids. Minted at the edge and carried in events, so the core never makes one up."""

from typing import NewType

TenantId = NewType("TenantId", str)
RunId = NewType("RunId", str)
#: `<run>/<step name>`: unique over all runs.
StepId = NewType("StepId", str)
#: The fingerprint of the task's action document: 64 hex digits.
TaskId = NewType("TaskId", str)
LeaseId = NewType("LeaseId", int)
WorkerId = NewType("WorkerId", str)
