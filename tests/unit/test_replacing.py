"""A record with some fields changed, as `dataclasses.replace` makes it."""

import dataclasses

import pytest

from flowmesh.base.ids import TenantId
from flowmesh.base.replacing import maker, replace
from flowmesh.core.records import Hold, Quota, Tenant


def test_it_does_what_dataclasses_do() -> None:
    tenant = Tenant(TenantId("t"), weight=2.0, quota=Quota(leases=3))
    changes = {"weight": 3.0, "open_runs": 1}
    assert replace(tenant, **changes) == dataclasses.replace(tenant, **changes)  # type: ignore[arg-type]
    assert tenant.weight == 2.0
    assert replace(tenant) == tenant and replace(tenant) is not tenant


def test_it_knows_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        replace(Quota(), most=1)


def test_a_maker_does_what_the_class_does() -> None:
    hold = maker(Hold)
    assert hold(2, 0.5) == Hold(2, 0.5) and hold(tasks=2, usd=0.5, part=0.1) == Hold(2, 0.5, 0.1)
    assert type(hold(2, 0.5)) is Hold and hash(hold(2, 0.5)) == hash(Hold(2, 0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        hold(2, 0.5).tasks = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        hold(2)  # type: ignore[call-arg]
