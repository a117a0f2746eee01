"""A run, as its owner sees it: follow it, cancel it, fetch what it made."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmesh.base.digest import Digest
from flowmesh.base.errors import NotFound, Problem, SpecError, Unreachable
from flowmesh.base.nearest import nearest
from flowmesh.planning import RunPlan
from flowmesh.sdk.transport import NoServer
from flowmesh.sdk.trees import fetch_tree
from flowmesh.spec.table import decode_rows
from flowmesh.wire import ArtifactView, RunView

if TYPE_CHECKING:
    from flowmesh.sdk.client import Client

#: Silence after which a stream is opened again; the server breaks it more often than that.
_SILENCE_S = 30.0
#: How often to ask while streams break.
_POLL_S = 0.5
#: How every PNG file begins.
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Output:
    """A named output of a run that has succeeded."""

    client: "Client"
    name: str
    artifact: ArtifactView

    @property
    def digest(self) -> str:
        return self.artifact.digest

    def bytes(self) -> bytes:
        """The content of a table or file; of a tree, its manifest."""
        return self.client.store_get(Digest.parse(self.digest))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of a table. Raises SpecError if this is none."""
        if self.artifact.kind != "table":
            message = f"output {self.name!r} is a {self.artifact.kind}; only tables have rows"
            raise SpecError(Problem(message))
        return decode_rows(self.bytes(), self.name)

    def to_pandas(self) -> Any:
        """A table as a `pandas.DataFrame`; needs pandas."""
        pandas = import_module("pandas")  # heavy, and not among what we require

        columns = list(self.artifact.columns) or None
        return pandas.DataFrame(self.rows(), columns=columns)

    def path(self, directory: str | Path) -> Path:
        """Write it under a directory, which is made: a `.jsonl` file, a file or a folder.

        A picture's file ends in `.png`. A file that is there is replaced. Raises SpecError if
        a tree's folder is there and not empty.
        """
        folder = Path(directory)
        if self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name:
            raise SpecError(Problem(f"{self.name!r:.100} is no name for a file"))
        if self.artifact.kind == "tree":
            fetch_tree(self.client, Digest.parse(self.digest), folder / self.name)
            return folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{self.name}.{secrets.token_hex(4)}"
        try:
            self.client.store_save(Digest.parse(self.digest), draft)
            place = folder / f"{self.name}{_ending(self, draft)}"
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)
        return place


def _ending(output: Output, written: Path) -> str:
    """What the name of its file ends in: programs that show pictures go by it."""
    if output.artifact.kind == "table":
        return ".jsonl"
    with written.open("rb") as file:
        is_png = file.read(len(_PNG)) == _PNG
    return ".png" if is_png and not output.name.endswith(".png") else ""


class Run:
    """A run of one tenant. What it knows is as of `last`, the newest view that was fetched."""

    def __init__(self, client: "Client", view: RunView) -> None:
        self._client = client
        self.last = view

    @property
    def id(self) -> str:
        return self.last.run

    def view(self) -> RunView:
        """How it stands now."""
        return self._keep(self._client.transport.request("GET", f"/v1/runs/{self.id}"))

    def watch(self) -> Iterator[RunView]:
        """A view at each change, the settled one last; goes on through a server's restart."""
        transport = self._client.transport
        while True:
            try:
                for data in self._events():
                    view = self._keep(data)
                    yield view
                    if view.status != "running":
                        return
            except NoServer:
                raise
            except Unreachable:
                # Asking for the view waits for the server to come back. Where streams do not
                # get through at all, this is what is left: to ask now and then.
                transport.sleep(_POLL_S)
            view = self.view()
            yield view
            if view.status != "running":
                return

    def wait(self, on_change: Callable[[RunView], None] | None = None) -> RunView:
        """Return once the run has settled; tell each change to `on_change`."""
        for view in self.watch():
            if on_change is not None:
                on_change(view)
        return self.last

    def cancel(self, *, checkpoint: bool = False) -> RunView:
        """Stop what only this run wants; what others share goes on. No effect once settled.

        Args:
            checkpoint: give long tasks up to 5 s to leave what they can be gone on with; the
                same workflow, submitted again, goes on from there.
        """
        path, params = f"/v1/runs/{self.id}/cancel", {"checkpoint": str(checkpoint).lower()}
        return self._keep(self._client.transport.request("POST", path, params=params))

    def plan(self) -> RunPlan:
        """What was forecast when it was submitted, beside what came of it so far."""
        path = f"/v1/runs/{self.id}/plan"
        return RunPlan.model_validate_json(self._client.transport.request("GET", path))

    @property
    def outputs(self) -> Mapping[str, Output]:
        """Named outputs: those of `last`, fetched anew if the run was not settled then."""
        view = self.last if self.last.status != "running" else self.view()
        return {name: Output(self._client, name, one) for name, one in view.outputs.items()}

    def output(self, name: str) -> Output:
        """Raises NotFound, with the nearest name or the reason why there are none."""
        found = self.outputs
        if name not in found:
            why = nearest(name, found) if found else f"; it is {self.last.status}"
            raise NotFound(f"run {self.id} has no output {name!r}{why}")
        return found[name]

    def _keep(self, data: bytes | str) -> RunView:
        self.last = RunView.model_validate_json(data)
        return self.last

    def _events(self) -> Iterator[str]:
        """The data of each event of one stream."""
        data: list[str] = []
        for line in self._client.transport.lines(f"/v1/runs/{self.id}/events", _SILENCE_S):
            if line.startswith("data:"):
                data.append(line.removeprefix("data:").removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data.clear()
