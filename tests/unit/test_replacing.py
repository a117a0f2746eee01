"""A record with some fields changed, as `dataclasses.replace` makes it."""

import dataclasses

import pytest

from flowmesh.base.ids import TenantId
from flowmesh.base.replacing import replace
from flowmesh.core.records import Quota, Tenant


def test_it_does_what_dataclasses_do() -> None:
    tenant = Tenant(TenantId("t"), weight=2.0, quota=Quota(leases=3))
    changes = {"weight": 3.0, "open_runs": 1}
    assert replace(tenant, **changes) == dataclasses.replace(tenant, **changes)  # type: ignore[arg-type]
    assert tenant.weight == 2.0
    assert replace(tenant) == tenant and replace(tenant) is not tenant


def test_it_knows_no_other_fields() -> None:
    with pytest.raises(KeyError):
        replace(Quota(), most=1)
