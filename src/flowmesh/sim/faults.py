"""Which faults a simulation injects, drawn from its seed."""

from dataclasses import dataclass, fields
from random import Random


@dataclass(slots=True)
class Faults:
    """Probabilities per message, sync, step of the plane, or attempt; zero means never.

    Attributes:
        lose, repeat: of a message between worker and control plane.
        crash_worker: its process is replaced by a new one.
        pause_worker: it is silent for longer than a lease, then goes on as if nothing was.
        leave_worker: it is taken away with notice.
        crash_before: the plane dies before an event is journaled: nothing was heard.
        crash_after: it dies between journal and perform.
        jump_clock: the plane's clock jumps, either way.
        transient, memory, internal, crash_child: an attempt fails so.
        bad_input: share of tasks whose input is at fault.
        lose_blob: something that a step had made is found to be gone when it is needed.
        cancel: share of runs that somebody cancels.
        delay_ms_max: of a message; beyond a lease's length, heartbeats come too late.
    """

    lose: float = 0.0
    repeat: float = 0.0
    crash_worker: float = 0.0
    pause_worker: float = 0.0
    leave_worker: float = 0.0
    crash_before: float = 0.0
    crash_after: float = 0.0
    jump_clock: float = 0.0
    transient: float = 0.0
    memory: float = 0.0
    internal: float = 0.0
    crash_child: float = 0.0
    bad_input: float = 0.0
    lose_blob: float = 0.0
    cancel: float = 0.0
    delay_ms_max: int = 50

    @classmethod
    def swarm(cls, rng: Random) -> "Faults":
        """Turn each kind on or off by a coin, then draw how much of it there is."""
        most = {"lose": 0.3, "repeat": 0.3, "cancel": 0.3, "bad_input": 0.1}
        faults = cls(delay_ms_max=rng.choice([1, 50, 5_000, 30_000]))
        for fault in fields(cls):
            if fault.name != "delay_ms_max" and rng.random() < 0.5:
                setattr(faults, fault.name, rng.random() * most.get(fault.name, 0.03))
        return faults

    @property
    def attempts_fail(self) -> bool:
        """Whether a task with nothing wrong may still fail for good."""
        return any((self.transient, self.memory, self.internal, self.crash_child))

    def stop(self) -> None:
        """End all that happens to machines and messages. What is wrong with inputs stays."""
        for fault in fields(self):
            if fault.name not in ("bad_input", "delay_ms_max"):
                setattr(self, fault.name, 0.0)
        self.delay_ms_max = 50
