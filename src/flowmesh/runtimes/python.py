"""Carries out `python` and `python_table`: calls of a user's function, each within limits.

One process serves a batch, row after row, so the file is loaded once. A row that breaks
the process costs only itself: the next one gets a new process, and a row that failed for
want of memory, or by the death of a process that others had used, is tried in a new one.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmesh.base.nearest import nearest
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.runtimes.python_process import FunctionProcess, ProcessEnded, TookTooLong
from flowmesh.runtimes.rows import TableError, store_table
from flowmesh.spec.action import Action, Artifact, Result
from flowmesh.spec.table import columns_of, decode_rows

_MB = 1_000_000


def open_python(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "PythonEngine":
    """An `OpenEngine`."""
    return PythonEngine(blobs)


class CallFailed(Exception):
    """The function, its file or its limits are at fault; the message is for the user."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class PythonEngine:
    """Groups a batch by function: a batch may mix files, which have no part in its key."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        groups: dict[tuple[str, str, int], list[Work]] = {}
        for work in batch:
            params = work.action.params
            key = (_artifact(work.action, "file").digest, params["function"], params["memory_mb"])
            groups.setdefault(key, []).append(work)
        for works in groups.values():
            function = Function(self._blobs, works[0].action)
            try:
                for work in works:
                    yield self._outcome(function, work)
            finally:
                function.close()

    def _outcome(self, function: "Function", work: Work) -> Outcome:
        params = work.action.params
        request = {"args": params["args"], "seed": work.task}
        try:
            if work.action.op == "python":
                request["row"] = json.loads(params["row"])
                answer = function.call(request, params["timeout_s"])
                return Done(work.task, Result(rows=answer["rows"]))
            table = self._blobs.path(_artifact(work.action, "rows").address)
            out = self._blobs.scratch() / "out.jsonl"
            request |= {"table": str(table), "out": str(out)}
            function.call(request, params["timeout_s"])
            rows = decode_rows(out.read_bytes())
            kept = store_table(self._blobs, rows, columns_of(rows))
            return Done(work.task, Result(outputs={"rows": kept}))
        except CallFailed as error:
            return Failed(work.task, FailureKind.INPUT, str(error), error.detail)
        except TableError as error:
            return Failed(work.task, FailureKind.INPUT, str(error))


class Function:
    """A function and the process it is loaded in, if there is one at the moment."""

    def __init__(self, blobs: Blobs, action: Action) -> None:
        self._source = blobs.path(_artifact(action, "file").address)
        self._name: str = action.params["function"]
        self._memory_mb: int = action.params["memory_mb"]
        #: It changes the world, so a call that went wrong is not made again here.
        self._acts: bool = action.params.get("act", False)
        self._home: Path = blobs.scratch()
        self._process: FunctionProcess | None = None
        #: Why the file can not be loaded: as true for the next row as for this one.
        self._broken: CallFailed | None = None

    def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Ask for one call. Raises CallFailed."""
        fresh = self._process is None
        process = self._process or self._load(timeout_s)
        # The process may use all processors; the parent kills it by the wall clock first.
        cpu_s = math.ceil(timeout_s * (os.cpu_count() or 1)) + 1
        try:
            answer = process.ask({**request, "cpu_s": cpu_s}, timeout_s=timeout_s)
        except TookTooLong:
            raise self._over_time(f"{self._name}()", timeout_s) from None
        except ProcessEnded as ended:
            self.close()
            if not fresh and not self._acts:
                return self.call(request, timeout_s)
            raise CallFailed(f"{self._name}() {ended}", process.printed) from None
        if "memory" in answer:
            self.close()
            if not fresh and not self._acts:
                return self.call(request, timeout_s)
            raise self._over_memory(f"{self._name}()")
        if "failed" in answer:
            raise CallFailed(answer["failed"], _detail(answer["detail"], process.printed))
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _load(self, timeout_s: float) -> FunctionProcess:
        if self._broken is not None:
            raise self._broken
        self._process = process = FunctionProcess(self._home)
        try:
            self._start(process, timeout_s)
        except CallFailed as error:
            self.close()
            self._broken = error
            raise
        return process

    def _start(self, process: FunctionProcess, timeout_s: float) -> None:
        setup = {
            "source": str(self._source),
            "function": self._name,
            "memory_bytes": self._memory_mb * _MB,
            "parent": os.getpid(),
        }
        try:
            answer = process.ask(setup, timeout_s=timeout_s)
        except TookTooLong:
            raise self._over_time("loading the file", timeout_s) from None
        except ProcessEnded as ended:
            raise CallFailed(f"loading the file {ended}", process.printed) from None
        if "memory" in answer:
            raise self._over_memory("loading the file")
        if "missing" in answer:
            known = nearest(self._name, answer["missing"])
            raise CallFailed(f"the file has no function {self._name!r}{known}")
        if "failed" in answer:
            raise CallFailed(answer["failed"], _detail(answer["detail"], process.printed))

    def _over_time(self, what: str, timeout_s: float) -> CallFailed:
        printed = self._process.printed if self._process is not None else ""
        self.close()
        return CallFailed(f"{what} was killed at its limit of {timeout_s:g} s", printed)

    def _over_memory(self, what: str) -> CallFailed:
        return CallFailed(f"{what} needs more than `memory_mb`: {self._memory_mb} MB; raise it")


def _detail(trace: str, printed: str) -> str:
    return f"{trace}\nPrinted:\n{printed}" if printed else trace


def _artifact(action: Action, port: str) -> Artifact:
    bound = action.inputs[port]
    assert isinstance(bound, Artifact), bound
    return bound
