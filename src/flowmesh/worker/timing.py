"""What a batch takes, measured in the process that runs it."""

import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowmesh.runtimes.base import Done, Outcome
from flowmesh.wire import BatchReport


@dataclass(frozen=True, slots=True)
class Took:
    """As a child tells it with the end of a batch.

    Attributes:
        open_s: to open the engine; None if it was warm.
        exec_s: from then on, to the last outcome.
        prompt_tokens: that were read; not those that were remembered from other rows.
        steps: passes that wrote a token for each row; of an engine that does not count them, the
            tokens of the longest row.
        joules: as far as the engine has measured them itself, else 0.
    """

    open_s: float | None = None
    exec_s: float = 0.0
    cpu_s: float = 0.0
    prompt_tokens: int = 0
    steps: int = 0
    output_tokens: int = 0
    joules: float = 0.0


class Stopwatch:
    """Times one batch; from its making on.

    Args:
        slowdown: every second of work is followed by so much idling that it seems to take this
            many times as long: for tests that need unlike machines.
    """

    def __init__(self, slowdown: float = 1.0) -> None:
        self._slowdown = slowdown
        self._since = self._began = time.monotonic()
        self._cpu_s = _cpu_s()
        self._open_s: float | None = None
        self._done: list[Done] = []

    def opened(self, *, cold: bool) -> None:
        """The engine is open; from now on it executes."""
        self._idle()
        if cold:
            self._open_s = self._since - self._began
        self._began = self._since

    def made(self, outcome: Outcome) -> None:
        self._idle()
        if isinstance(outcome, Done):
            self._done.append(outcome)

    def took(self, steps: int | None) -> Took:
        """`steps` is what the engine has counted itself, if it does."""
        self._idle()
        usages = [done.result.usage for done in self._done]
        longest = max((usage.generated_tokens for usage in usages), default=0)
        return Took(
            self._open_s,
            self._since - self._began,
            _cpu_s() - self._cpu_s,
            sum(max(0, usage.prompt_tokens - usage.cached_tokens) for usage in usages),
            longest if steps is None else steps,
            sum(usage.generated_tokens for usage in usages),
            sum(usage.joules or 0.0 for usage in usages),
        )

    def _idle(self) -> None:
        now = time.monotonic()
        if self._slowdown > 1:
            time.sleep((now - self._since) * (self._slowdown - 1))
            now = time.monotonic()
        self._since = now


def _cpu_s() -> float:
    """Of this process and those that it has started and that have ended."""
    ours, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in (ours, others))


@dataclass(slots=True)
class Batch:
    """The worker's own part of what a batch takes; it fills in the rest from a child's `Took`.

    Attributes:
        model_bytes: what a cold engine loads.
        start_s: until a process was there to run it.
    """

    fetch_s: float = 0.0
    fetch_bytes: int = 0
    model_bytes: int = 0
    start_s: float = 0.0

    def report(
        self, took: Took, works: Iterable[float], joules: Callable[[float, float], float]
    ) -> BatchReport:
        """For the server.

        Args:
            works: of each task that was executed, as the server takes it.
            joules: of seconds and processor seconds, where the engine has not measured them.
        """
        each = list(works)
        load_s = 0.0 if took.open_s is None else self.start_s + took.open_s
        modelled = joules(took.exec_s + load_s + self.fetch_s, took.cpu_s)
        return BatchReport(
            tasks=len(each),
            fetch_s=self.fetch_s,
            fetch_bytes=self.fetch_bytes,
            load_s=load_s,
            load_bytes=0 if took.open_s is None else self.model_bytes,
            exec_s=took.exec_s,
            prompt_tokens=took.prompt_tokens,
            decode_steps=took.steps,
            output_tokens=took.output_tokens,
            work=sum(each),
            joules=took.joules or modelled,
            cpu_s=took.cpu_s,
        )
