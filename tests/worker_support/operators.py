"""Operators that do as they are told, and the engines behind them."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmesh.base.digest import Digest
from flowmesh.runtimes.base import Blobs, Done, Failed, FailureKind, Outcome, Work
from flowmesh.spec.action import Artifact, Result, Usage
from flowmesh.spec.operator import Operator, Params, Port


class AnyParams(Params):
    do: str


class Obedient:
    """Does to each task what its parameter `do` says."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield getattr(self, work.action.params["do"])(work)

    def echo(self, work: Work) -> Outcome:
        row = {"text": work.action.params["text"], "pid": os.getpid()}
        return Done(work.task, Result(rows=[row]))

    def count(self, work: Work) -> Outcome:
        usage = Usage(generated_tokens=work.action.params["tokens"])
        return Done(work.task, Result(rows=[], usage=usage))

    def write(self, work: Work) -> Outcome:
        folder = self._blobs.scratch()
        file = folder / "out"
        file.write_text(work.action.params["text"])
        digest = self._blobs.put(file)
        return Done(work.task, Result(outputs={"rows": Artifact("table", str(digest))}))

    def read(self, work: Work) -> Outcome:
        bound = work.action.inputs["file"]
        assert isinstance(bound, Artifact)
        text = self._blobs.path(bound.address).read_text()
        return Done(work.task, Result(rows=[{"text": text}]))

    def look(self, work: Work) -> Outcome:
        bound = work.action.inputs["model"]
        assert isinstance(bound, Artifact)
        folder = self._blobs.tree(Digest.parse(bound.digest))
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return Done(work.task, Result(rows=[{"files": files, "pid": os.getpid()}]))

    def hang(self, work: Work) -> Outcome:
        with Path(work.action.params["fifo"]).open() as fifo:
            fifo.read()
        return Done(work.task, Result(rows=[]))

    def environment(self, work: Work) -> Outcome:
        return Done(work.task, Result(rows=[dict(os.environ)]))

    def refuse(self, work: Work) -> Outcome:
        return Failed(work.task, FailureKind.INPUT, "this row is wrong", "because")

    def die(self, work: Work) -> Outcome:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("survived")

    def gobble(self, work: Work) -> Outcome:
        raise MemoryError

    def lose(self, work: Work) -> Outcome:
        self._blobs.path(Digest.of(b"nowhere"))
        raise AssertionError("found")

    def leave(self, work: Work) -> Outcome:
        raise SystemExit(0)

    def stray(self, work: Work) -> Outcome:
        return Done("another task", Result(rows=[]))

    def unspeakable(self, work: Work) -> Outcome:
        return Done(work.task, Result(rows=[{"x": object()}]))

    def stumble(self, work: Work) -> Outcome:
        raise ValueError("two\nlines")


def open_obedient(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Obedient:
    return Obedient(blobs)


def open_lacking(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> Obedient:
    raise ImportError("No module named 'torch'")


def _operator(name: str, runtime: str, entry: str, **more: Any) -> Operator:
    return Operator(
        name=name,
        version=1,
        summary="",
        params=AnyParams,
        inputs={"rows": Port("table", ""), "model": Port("model", "", required=False)},
        grain="row",
        runtime=runtime,
        entry=f"worker_support.operators:{entry}",
        **more,
    )


OPERATORS = {
    operator.name: operator
    for operator in (
        _operator("act", "light", "open_obedient"),
        _operator("also", "light", "open_obedient"),
        _operator("lacking", "light", "open_lacking"),
        _operator("broken", "broken", "open_obedient", preload=("worker_support.no_such",)),
        _operator("absent", "absent", "open_obedient", preload=("no_such_package.part",)),
    )
}
