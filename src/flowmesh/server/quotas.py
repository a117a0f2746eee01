"""What the deployment says of its tenants: a file with their weights and quotas."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.ids import TenantId
from flowmesh.base.nearest import nearest
from flowmesh.base.sizes import size_bytes
from flowmesh.core.events import TenantChanged
from flowmesh.core.records import Quota, Tenant
from flowmesh.core.state import State
from flowmesh.spec.document import Positions, read
from flowmesh.spec.messages import by_path, in_words
from flowmesh.spec.workflow import REGISTERED_PATTERN
from flowmesh.wire import COUNT_LIMIT

WEIGHT_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class TenantSettings:
    """A tenant's share beside others', and what it may use."""

    weight: float = 1.0
    quota: Quota = field(default_factory=Quota)


def _bytes(value: Any) -> Any:
    return size_bytes(value) if isinstance(value, str) else value


def _not_zero(value: float) -> float:
    """Within the core 0 is no limit; whoever writes it means that nothing is allowed."""
    if not value:
        raise ValueError("0 is no quota: leave it out for no limit")
    return value


_Limit = AfterValidator(_not_zero)


class _Said(BaseModel):
    """One tenant of the file; what is left out is 0, no limit."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    weight: Annotated[float, Field(gt=0, le=WEIGHT_LIMIT)] = 1.0
    leases: Annotated[int, Field(ge=0, le=COUNT_LIMIT), _Limit] = 0
    usd_per_day: Annotated[float, Field(ge=0, le=1e9), _Limit] = 0.0
    stored_bytes: Annotated[int, BeforeValidator(_bytes), Field(ge=0, le=COUNT_LIMIT), _Limit] = 0


_NAME = Annotated[str, Field(pattern=REGISTERED_PATTERN)]
_FILE = TypeAdapter(dict[_NAME, _Said])


def load(path: Path) -> dict[str, TenantSettings]:
    """Read a file of tenants, as `{alice: {weight: 2, usd_per_day: 5, stored_bytes: 10GB}}`.

    Raises SpecError with every problem found, by line.
    """
    try:
        data, positions = read(path.read_bytes(), str(path))
    except OSError as error:
        raise SpecError(Problem(f"cannot be read: {error.strerror}", str(path))) from error
    try:
        said = _FILE.validate_python(data if data is not None else {})
    except ValidationError as error:
        raise SpecError(*_problems(data, error, positions)) from None
    return {
        name: TenantSettings(one.weight, Quota(one.leases, one.usd_per_day, one.stored_bytes))
        for name, one in said.items()
    }


def _problems(data: Any, error: ValidationError, positions: Positions) -> list[Problem]:
    found = []
    for path, errors in by_path(data, error.errors(include_url=False)).items():
        message = in_words(errors)
        if any(one["type"] == "extra_forbidden" for one in errors):
            message = f"unknown key {path[-1]!r}{nearest(path[-1], _Said.model_fields)}"
        elif "[key]" in errors[0]["loc"]:
            message = f"{path[-1]!r} is no name for a tenant"
        found.append(positions.problem(message, *path))
    return sorted(found, key=lambda problem: (problem.line, problem.column))


def changes_of(
    state: State, settings: Mapping[str, TenantSettings], at_ms: int
) -> list[TenantChanged]:
    """What brings the core's tenants in line with the settings; those not named have none."""
    found = []
    for name in dict.fromkeys([*settings, *state.tenants]):
        tenant_id = TenantId(name)
        wanted = settings.get(name, TenantSettings())
        known = state.tenants.get(tenant_id, Tenant(tenant_id))
        if (known.weight, known.quota) != (wanted.weight, wanted.quota):
            found.append(TenantChanged(at_ms, tenant_id, wanted.weight, wanted.quota))
    return found
