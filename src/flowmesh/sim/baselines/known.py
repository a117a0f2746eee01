"""What baselines are told beside the state: the truth that our policy has to learn.

No baseline shall lose for a bad estimate, so each is given the true mean times of the simulated
engines, and the true mean sizes of the tasks of the workload.
"""

from dataclasses import dataclass
from typing import Protocol

from flowmesh.base.ids import RunId
from flowmesh.core.fleet import Device


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run: how many rows of which batch key."""

    batch_key: str
    rows: int


class Known(Protocol):
    """True means. A batch key that is not in the workload is an error."""

    def fits(self, batch_key: str, device: Device) -> bool:
        """Whether the device's memory holds its weights and a row."""

    def rows(self, batch_key: str, device: Device) -> int:
        """Rows of a full batch: as many as the engine runs at one time."""

    def row_s(self, batch_key: str, device: Device) -> float:
        """Seconds of a mean row in a full batch."""

    def batch_s(self, batch_key: str, device: Device, rows: int) -> float:
        """Seconds of a batch of mean rows."""

    def load_s(self, batch_key: str, device: Device) -> float:
        """Seconds until a machine that has nothing yet could start: fetch and load."""

    def reference_usd(self, batch_key: str) -> float:
        """Of a mean row, on the cheapest kind."""

    def stages(self, run: RunId) -> tuple[Stage, ...]:
        """The steps of a run in their order, as they would be if nothing was shared."""
