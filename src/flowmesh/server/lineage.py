"""Where an artifact or a row came from, and what was made of it.

Up: the step that made it, the task behind a row with what that took, then that step's
inputs. Down: the steps that read it, then what they made. Both are walks over `artifacts`
and `uses`, which were written in the transactions that completed the steps.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.errors import NotFound
from flowmesh.server.driver import Driver
from flowmesh.spec.action import Result
from flowmesh.wire import LineageNode

DEPTH_LIMIT = 40
#: Nodes of one answer; what is beyond is marked as cut.
NODES_LIMIT = 2_000
#: Rows shown of those that were made of one row.
ROWS_LIMIT = 50


@dataclass(frozen=True, slots=True)
class Place:
    """An artifact as a step made it, and a row of it if one is asked about."""

    digest: str
    step: str
    port: str
    row: int | None = None


class Lineage:
    """One question. `tenant` sees its own runs only."""

    def __init__(self, driver: Driver, tenant: str) -> None:
        self._read = driver.database.read
        self._driver = driver
        self._tenant = tenant
        self._left = NODES_LIMIT

    def of_output(self, run: str, output: str, row: int | None, *, down: bool) -> LineageNode:
        """Of a run's named output, or of `<step>.<port>`. Raises NotFound."""
        graph = self._driver.submissions.of(self._own(run)).graph
        if output in graph.outputs:
            step, port = graph.outputs[output].step, graph.outputs[output].port
        else:
            step, _, port = output.rpartition(".")
        found = self._read(
            "SELECT digest FROM artifacts WHERE step = ? AND port = ?", (f"{run}/{step}", port)
        )
        if not found:
            known = ", ".join(graph.outputs) or "none"
            raise NotFound(f"run {run} has made no output {output!r}; outputs: {known}")
        place = Place(found[0][0], f"{run}/{step}", port, row)
        return self._down(place, 0) if down else self._up(place, 0)

    def of_digest(self, digest: str, row: int | None, *, down: bool) -> LineageNode:
        """Of an artifact by digest, as the tenant's newest run made or used it."""
        span = (digest, f"{digest}0") if "/" not in digest else (digest, f"{digest}\x00")
        made = self._read(
            "SELECT a.digest, a.step, a.port FROM artifacts a JOIN runs r USING (run)"
            " WHERE a.digest >= ? AND a.digest < ? AND r.tenant = ?"
            " ORDER BY r.submitted_ms DESC LIMIT 1",
            (*span, self._tenant),
        )
        if made:
            full, step, port = made[0]
            place = Place(full, step, port, row)
            return self._down(place, 0) if down else self._up(place, 0)
        used = self._read(
            "SELECT u.digest, u.source, u.kind, s.run FROM uses u JOIN steps s USING (step)"
            " JOIN runs r USING (run)"
            " WHERE u.digest >= ? AND u.digest < ? AND r.tenant = ? LIMIT 1",
            (*span, self._tenant),
        )
        if not used:
            raise NotFound(f"no run of tenant {self._tenant} has made or used {digest}")
        full, source, kind, run = used[0]
        node = _given(full, source, kind, run, row)
        if down:
            node.children = list(self._users(full, row, 0, run=None))
        return node

    def _own(self, run: str) -> Any:
        if not self._read("SELECT 1 FROM runs WHERE run = ? AND tenant = ?", (run, self._tenant)):
            raise NotFound(f"tenant {self._tenant} has no run {run}; `flowmesh runs` lists them")
        return run

    def _node(self, place: Place) -> LineageNode:
        self._left -= 1
        run, step = place.step.split("/", 1)
        ((op, count),) = self._read("SELECT op, items FROM steps WHERE step = ?", (place.step,))
        label = f"{step}.{place.port}" + ("" if place.row is None else f" row {place.row}")
        return LineageNode(
            label=label,
            kind="artifact" if place.row is None else "row",
            digest=place.digest,
            run=run,
            step=step,
            port=place.port,
            row=place.row,
            facts={"operator": op, "items": count},
        )

    def _up(self, place: Place, depth: int) -> LineageNode:
        node = self._node(place)
        origin = self._origin(place)
        if place.row is not None and origin is not None:
            self._name_task(node, place, origin)
        if depth >= DEPTH_LIMIT or self._left <= 0:
            node.cut = True
            return node
        uses = self._read(
            "SELECT digest, port, kind, source FROM uses WHERE step = ? ORDER BY port",
            (place.step,),
        )
        for digest, port, kind, source in uses:
            row = None
            if origin is not None and kind == "table":
                if origin[0] != port:
                    continue
                row = origin[1]
            node.children.append(self._source(node.run, digest, kind, source, row, depth + 1))
        if place.row is None:
            self._name_only_task(node, place)
        return node

    def _source(
        self, run: str, digest: str, kind: str, source: str, row: int | None, depth: int
    ) -> LineageNode:
        root, _, name = source.partition(".")
        if root == "steps":
            step, _, port = name.rpartition(".")
            return self._up(Place(digest, f"{run}/{step}", port, row), depth)
        self._left -= 1
        return _given(digest, source, kind, run, row)

    def _origin(self, place: Place) -> list[Any] | None:
        """The `[input port, row]` that a row was made from, if that is known."""
        if place.row is None:
            return None
        lines = self._origins(place.step, place.port)
        if lines is None:
            return None
        if not 0 <= place.row < len(lines):
            raise NotFound(f"{place.port} of {place.step} has rows 0 to {len(lines) - 1}")
        origin: list[Any] = msgspec.json.decode(lines[place.row])
        return origin

    def _origins(self, step: str, port: str) -> list[bytes] | None:
        ((text,),) = self._read("SELECT origins FROM steps WHERE step = ?", (step,))
        blob = json.loads(text).get(port)
        return self._driver.store.read(Digest.parse(blob)).splitlines() if blob else None

    def _name_task(self, node: LineageNode, place: Place, origin: list[Any]) -> None:
        """The task behind a row: of a row operator, its item's; else the step's only one."""
        items = self._driver.items(place.step).items  # type: ignore[arg-type]
        if len(origin) > 2:
            wanted = (origin[1], origin[2])
            tasks = [item.task for item in items if (item.row, item.sample) == wanted]
        else:
            tasks = [item.task for item in items]
        if len(tasks) == 1:
            self._tell_task(node, tasks[0])

    def _name_only_task(self, node: LineageNode, place: Place) -> None:
        tasks = {item.task for item in self._driver.items(place.step).items}  # type: ignore[arg-type]
        if len(tasks) == 1:
            self._tell_task(node, tasks.pop())
        else:
            node.facts["tasks"] = len(tasks)

    def _tell_task(self, node: LineageNode, task: str) -> None:
        found = self._read(
            "SELECT batch_key, worker, lease, run, made_ms, seconds, usd, pack, line, result"
            " FROM results WHERE task = ?",
            (task,),
        )
        node.task = task
        for batch_key, worker, lease, run, made_ms, seconds, usd, pack, line, result in found:
            usage = Result.decode(result).usage
            operator, _, engine = batch_key.partition("/")
            node.facts |= {
                "operator": operator,
                "engine": engine,
                "worker": worker,
                "lease": lease,
                "computed_by_run": run,
                "made_ms": made_ms,
                "seconds": seconds,
                "cost_usd": usd,
                "joules": usage.joules,
                "prompt_tokens": usage.prompt_tokens,
                "generated_tokens": usage.generated_tokens,
                "numerics": Result.decode(result).numerics,
                "action": f"{pack}#{line}",
            }

    def _down(self, place: Place, depth: int) -> LineageNode:
        node = self._node(place)
        if depth >= DEPTH_LIMIT or self._left <= 0:
            node.cut = True
            return node
        run = place.step.split("/", 1)[0]
        node.children = list(self._users(place.digest, place.row, depth, run))
        return node

    def _users(
        self, digest: str, row: int | None, depth: int, run: str | None
    ) -> Iterator[LineageNode]:
        """What was made of an artifact: in one run, or in all of the tenant's."""
        uses = self._read(
            "SELECT u.step, u.port FROM uses u JOIN steps s USING (step) JOIN runs r USING (run)"
            " WHERE u.digest = ? AND r.tenant = ? AND (? IS NULL OR s.run = ?)"
            " ORDER BY r.submitted_ms, s.position",
            (digest, self._tenant, run, run),
        )
        for step, port in uses:
            made = self._read("SELECT digest, port FROM artifacts WHERE step = ?", (step,))
            for out_digest, out_port in made:
                for out_row in self._rows_made(step, out_port, port, row):
                    yield self._down(Place(out_digest, step, out_port, out_row), depth + 1)

    def _rows_made(self, step: str, out_port: str, port: str, row: int | None) -> list[int | None]:
        """Rows of an output that were made from a row of an input; None for the whole."""
        lines = self._origins(step, out_port) if row is not None else None
        if lines is None:
            return [None]
        origins = (msgspec.json.decode(line) for line in lines)
        made = [number for number, origin in enumerate(origins) if origin[:2] == [port, row]]
        return [*made[:ROWS_LIMIT]]


def _given(digest: str, source: str, kind: str, run: str, row: int | None) -> LineageNode:
    """What came from outside: an input, a model, a file."""
    root, _, name = source.partition(".")
    what: Any = {"models": "model", "files": "file"}.get(root, "input")
    label = f"{what} {name}" + ("" if row is None else f" row {row}")
    return LineageNode(label=label, kind=what, digest=digest, run=run, row=row)
