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
OfferId = NewType("OfferId", str)
#: A rented machine; counted by the core, and the provider's tag for it.
InstanceId = NewType("InstanceId", str)
