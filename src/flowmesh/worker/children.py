"""The worker's side of its child processes: start, lend, measure, kill.

One child holds the engines of one key, so the weights of a model are in memory once,
whichever operators use them. Children are forked by a zygote, one for each set of
modules worth importing beforehand, which is started when it is first needed.
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from flowmesh.worker import frames
from flowmesh.worker.process import memory_bytes
from flowmesh.worker.timing import Took

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChildKey:
    """What tasks must have in common to be run by one child.

    `models` are the digests behind the model ports, in the order of the ports. A key
    without models is light: as many children of it may run as there is work for.
    """

    preload: tuple[str, ...]
    runtime: str
    engine: str = ""
    models: tuple[str, ...] = ()


class NoChild(Exception):
    """A child could not be started; the message is for the user."""


class ChildDied(Exception):
    """The process ended in the middle of a batch. `status` is negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(_ending(status))
        self.status = status


class Child:
    """A running child process, and the channel to it."""

    def __init__(
        self,
        key: ChildKey,
        pid: int,
        exited: asyncio.Future[int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.key, self.pid, self.exited = key, pid, exited
        self._reader, self._writer = reader, writer
        self.busy = False
        #: When it was last given back, by the loop's clock.
        self.idle_since = 0.0
        #: Whether it was told to end its batch; then it gets no other.
        self.asked_to_stop = False
        #: Batch keys whose engine it has opened.
        self.warm: set[str] = set()
        #: What its last batch took, if that came to its end.
        self.took: Took | None = None

    @property
    def alive(self) -> bool:
        return not self.exited.done() and not self._reader.at_eof()

    async def batch(self, order: frames.Frame) -> AsyncIterator[frames.Frame]:
        """Hand over a batch; yields what is said of its tasks. Raises ChildDied."""
        self.took = None
        try:
            self._writer.write(frames.encode(order))
            await self._writer.drain()
            while (frame := await frames.read(self._reader)) is not None:
                if "end" in frame:
                    self.took = Took(**frame["took"])
                    if frame["retire"]:
                        await self.exited
                    else:
                        self.warm.add(order["batch_key"])
                    return
                yield frame
        except ConnectionError:
            pass  # As for the end of the stream: what matters is how the process ended.
        raise ChildDied(await self.exited)

    def ask_to_stop(self) -> None:
        """Have its engine leave a checkpoint and end, if it looks at its monitor."""
        self.asked_to_stop = True
        if not self.exited.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and all it started. Its zygote says when it is gone."""
        if not self.exited.done():
            with suppress(ProcessLookupError):  # Reaped; the news of it is on its way.
                os.killpg(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until it has ended, and let go of the channel."""
        await asyncio.wait([self.exited])
        self._writer.close()


class Zygote:
    """The channel to one zygote process; see `zygote.py` for what is said on it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """`channel` is what `reader` and `writer` wrap: only a socket can carry descriptors."""
        self._process, self._channel = process, channel
        self._reader, self._writer = reader, writer
        self._listening = asyncio.create_task(self._listen())
        self._forked: dict[int, asyncio.Future[tuple[int, asyncio.Future[int]]]] = {}
        self._exited: dict[int, asyncio.Future[int]] = {}
        self._count = 0

    @classmethod
    async def start(cls, preload: tuple[str, ...], threads: int) -> "Zygote":
        """Start one and wait for its imports, seconds for the largest. Raises NoChild."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "flowmesh.worker.zygote", str(theirs.fileno()), str(os.getpid())),
                *preload,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # The worker's standard output is its own.
                env=environment(threads),
                start_new_session=True,  # Ctrl-C is for the worker, which then ends it.
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            first = await frames.read(reader)
            if first is None or "failed" in first:
                why = first["failed"] if first else _ending(await process.wait())
                raise NoChild(f"the process that imports {', '.join(preload)}: {why}")
        except BaseException:  # cancelled too: nobody else knows of the process yet
            await _end(process)
            writer.close()
            raise
        return cls(process, ours, reader, writer)

    @property
    def alive(self) -> bool:
        return not self._listening.done()

    async def fork(self, key: ChildKey, places: frames.Frame) -> Child:
        """A new child, told its `places`. Raises NoChild if the zygote has died."""
        ours, theirs = socket.socketpair()
        self._count += 1
        number, loop = self._count, asyncio.get_running_loop()
        forked = self._forked[number] = loop.create_future()
        try:
            with theirs:
                request = frames.encode({"fork": number})
                socket.send_fds(self._channel, [request], [theirs.fileno()])
            pid, exited = await forked
        except (ConnectionError, NoChild) as error:
            ours.close()
            raise NoChild(f"the process that forks children is gone: {error}") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(frames.encode(places))
        return Child(key, pid, exited, reader, writer)

    async def close(self) -> None:
        """Kill it and its children."""
        await _end(self._process)
        await self._listening

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while (frame := await frames.read(self._reader)) is not None:
            if "forked" in frame:
                exited = self._exited[frame["pid"]] = loop.create_future()
                forked = self._forked.pop(frame["forked"])
                if not forked.done():
                    forked.set_result((frame["pid"], exited))
            else:
                self._exited.pop(frame["exited"]).set_result(frame["status"])
        self._writer.close()
        # Its children are killed with it, by themselves or by the kernel.
        for exited in self._exited.values():
            exited.set_result(-signal.SIGKILL)
        for forked in self._forked.values():
            if not forked.done():
                forked.set_exception(NoChild(f"it {_ending(await self._process.wait())}"))


class Children:
    """All children of a worker, within a limit on the memory of those that lie idle."""

    def __init__(self, places: frames.Frame, *, threads: int, limit_bytes: int) -> None:
        """`places` is what a child is told first, see `child.py`. `limit_bytes` 0 is no limit."""
        self._places, self._threads, self._limit_bytes = places, threads, limit_bytes
        self._zygotes: dict[tuple[str, ...], Zygote] = {}
        self._children: list[Child] = []
        self._turns: dict[ChildKey, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting = asyncio.Lock()
        #: What a child of this key was last seen to hold.
        self._seen_bytes: dict[ChildKey, int] = {}
        self._starts: set[asyncio.Task[Any]] = set()
        self._burials: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def lend(self, key: ChildKey, model_bytes: int = 0) -> AsyncIterator[Child]:
        """A child for one batch: an idle one of this key, or a new one. Raises NoChild.

        A batch that does not come to its end (an exception, a cancellation) costs the
        child its life: nobody could tell what it is still doing.

        Args:
            model_bytes: size of the models, a first guess at what a new child will hold.
        """
        if not key.models:
            async with self._lend(key, model_bytes) as child:
                yield child
            return
        async with self._turns[key], self._lend(key, model_bytes) as child:
            yield child

    @property
    def warm(self) -> tuple[str, ...]:
        """Batch keys with an open engine."""
        return tuple(sorted({key for child in self._children if child.alive for key in child.warm}))

    @property
    def pids(self) -> dict[int, ChildKey]:
        """Living children, for a look from outside."""
        return {child.pid: child.key for child in self._children if child.alive}

    async def close(self) -> None:
        """Kill everything, and wait for the end of it."""
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        for child in self._children:
            child.kill()
        await asyncio.gather(*(zygote.close() for zygote in self._zygotes.values()))
        await asyncio.gather(*self._burials)

    @asynccontextmanager
    async def _lend(self, key: ChildKey, model_bytes: int) -> AsyncIterator[Child]:
        child = self._idle(key)
        while child is None or child.busy:  # A new one may be lent to another before we wake.
            # Shielded: who no longer wants it must not spoil the start for the next.
            start = self._background(self._start(key, model_bytes), self._starts)
            child = await asyncio.shield(start)
        child.busy = True
        try:
            yield child
        except BaseException:  # cancelled too: whatever it is doing, nobody waits for it
            child.kill()
            raise
        if child.asked_to_stop:
            child.kill()  # It ends by itself, unless the word came after the batch's end.
            return
        if child.alive:
            self._seen_bytes[key] = memory_bytes(child.pid)
        child.idle_since = asyncio.get_running_loop().time()
        child.busy = False

    def _idle(self, key: ChildKey) -> Child | None:
        for child in self._children:
            if child.key == key and child.alive and not child.busy:
                return child
        return None

    async def _start(self, key: ChildKey, model_bytes: int) -> Child:
        async with self._starting:
            await self._make_room(self._seen_bytes.get(key, model_bytes))
            zygote = self._zygotes.get(key.preload)
            if zygote is None or not zygote.alive:
                zygote = await Zygote.start(key.preload, self._threads)
                self._zygotes[key.preload] = zygote
            child = await zygote.fork(key, self._places)
        self._children.append(child)
        self._background(self._bury(child), self._burials)
        return child

    def _background(
        self, work: Coroutine[Any, Any, T], kept: set[asyncio.Task[Any]]
    ) -> asyncio.Task[T]:
        def finished(task: asyncio.Task[T]) -> None:
            kept.discard(task)
            if not task.cancelled():
                task.exception()  # Seen: nobody may be left to wait for it.

        task = asyncio.create_task(work)
        kept.add(task)
        task.add_done_callback(finished)
        return task

    async def _bury(self, child: Child) -> None:
        await child.gone()
        self._children.remove(child)

    async def _make_room(self, need_bytes: int) -> None:
        """End idle children, the longest idle first, until `need_bytes` more would fit."""
        if not self._limit_bytes:
            return
        held = {child: memory_bytes(child.pid) for child in self._children if child.alive}
        idle = sorted((c for c in held if not c.busy), key=lambda child: child.idle_since)
        for child in idle:
            if sum(held.values()) + need_bytes <= self._limit_bytes:
                return
            child.busy = True  # Lent to nobody from here on.
            child.kill()
            await child.gone()
            del held[child]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = "; the system does so when memory runs out" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status} ({name}){hint}"


_SECRET = re.compile(r"^FLOWMESH_|^AWS_|TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$")


def environment(threads: int) -> dict[str, str]:
    """Ours, less all that may be secret, and with what the libraries must know first."""
    ours = {name: text for name, text in os.environ.items() if not _SECRET.search(name)}
    return ours | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
