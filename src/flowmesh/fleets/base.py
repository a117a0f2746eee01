"""What the control plane needs of whoever rents machines out: four calls."""

from collections.abc import Sequence
from typing import Protocol

from flowmesh.base.ids import InstanceId
from flowmesh.core.fleet import Offer


class Provider(Protocol):
    """Rents machines and gives them back.

    Every call may be repeated, and may raise ProviderError with its effect unknown.
    `instances` is the only truth: a launch has worked once its id is listed, and a terminate
    has worked once it is not. Lists may be a little old. A machine carries its id as a tag from
    its launch on, and its worker says it with each sync.

    All implementations pass `tests/conformance/test_provider.py`, the simulated one included.
    """

    @property
    def name(self) -> str:
        """As in `Offer.provider`; unique in a deployment."""

    async def offers(self) -> Sequence[Offer]:
        """All that could be rented now; ids are unique among all providers of a deployment."""

    async def launch(self, offer: Offer, *, as_id: InstanceId) -> None:
        """Ask for a machine tagged `as_id`. If there is one already, do nothing.

        Raises:
            LaunchRefused: nothing was launched, and it is of no use to ask again.
        """

    async def terminate(self, instance: InstanceId) -> None:
        """Give a machine back. If there is none of that name, do nothing."""

    async def instances(self) -> Sequence[InstanceId]:
        """All machines with a tag of this deployment, starting or running."""
