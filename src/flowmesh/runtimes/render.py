"""Carries out `render`: the texts are in the action already."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmesh.runtimes.base import Blobs, Done, Outcome, Work
from flowmesh.spec.action import Result


def open_render(blobs: Blobs, inputs: Mapping[str, Any], engine: str) -> "RenderEngine":
    """An `OpenEngine`."""
    return RenderEngine()


class RenderEngine:
    def run(self, batch: Sequence[Work]) -> Iterator[Outcome]:
        for work in batch:
            yield Done(work.task, Result(rows=[dict(work.action.params["columns"])]))
