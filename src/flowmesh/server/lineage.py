"""Where an artifact or a row came from, and what was made of it.

Up: the step that made it, the task behind a row with what that took, then that step's
inputs; a model or adapter that an earlier run of the tenant made is followed into that run.
Down: the steps that read it, then what they made. Both are walks over `artifacts` and
`uses`, which were written in the transactions that completed the steps. What is near is
told first and what two roads lead to once, so that a limit cuts what is farthest.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from flowmesh.base.digest import Digest
from flowmesh.base.errors import NotFound, Problem, SpecError
from flowmesh.base.ids import RunId, StepId
from flowmesh.server.driver import Driver
from flowmesh.spec.action import Result
from flowmesh.spec.nodes import StepNode, StepOutput, candidates
from flowmesh.wire import LineageNode

#: Of one answer; a reader of JSON need not take more than about 100 levels.
DEPTH_LIMIT = 80
#: Nodes of one answer; what is beyond is marked as cut.
NODES_LIMIT = 2_000
#: Rows shown of those that were made of one row.
ROWS_LIMIT = 50
#: A digest; its size may be left out.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}(/\d{1,18})?")


@dataclass(frozen=True, slots=True)
class Place:
    """An artifact as a step made it, and a row of it if one is asked about."""

    digest: str
    step: str
    port: str
    row: int | None = None

    @property
    def run(self) -> RunId:
        return RunId(self.step.split("/", 1)[0])

    @property
    def name(self) -> str:
        """Of the step, within its run."""
        return self.step.split("/", 1)[1]


#: A node of the answer, and where to go on from it: None for what came from outside.
Found = tuple[LineageNode, Place | None]


def find_output(driver: Driver, tenant: str, run: str, output: str) -> Place:
    """A run's named output, or `<step>.<port>` of it. Raises NotFound."""
    read = driver.database.read
    if not read("SELECT 1 FROM runs WHERE run = ? AND tenant = ?", (run, tenant)):
        raise NotFound(f"tenant {tenant} has no run {run}; `flowmesh runs` lists them")
    outputs = driver.submissions.of(RunId(run)).graph.outputs
    places = [output.rpartition(".")[::2]]
    if output in outputs:
        # Of what a loop carries, the last round that was not skipped has made it.
        made = (one for one in candidates(outputs[output]) if isinstance(one, StepOutput))
        places = [(one.step, one.port) for one in made]
    for step, port in reversed(places):
        place = (f"{run}/{step}", port)
        for (digest,) in read("SELECT digest FROM artifacts WHERE step = ? AND port = ?", place):
            return Place(digest, *place)
    known = ", ".join(outputs) or "none"
    raise NotFound(f"run {run} has made no output {output!r}; outputs: {known}")


def maker_of(driver: Driver, tenant: str, digest: str, *, before: str = "") -> Place | None:
    """The tenant's newest run that made a tree; with `before`, newest before that run."""
    found = driver.database.read(
        "SELECT a.digest, a.step, a.port FROM artifacts a JOIN runs r USING (run)"
        " WHERE a.digest = ? AND a.kind = 'tree' AND r.tenant = ? AND a.run != ? AND (? = ''"
        " OR r.submitted_ms <= (SELECT submitted_ms FROM runs WHERE run = ?))"
        " ORDER BY r.submitted_ms DESC, a.step DESC, a.port LIMIT 1",
        (digest, tenant, before, before, before),
    )
    return Place(*found[0]) if found else None


def node_of(driver: Driver, place: Place) -> StepNode | None:
    """The step as its document has it; None where this version no longer takes the document."""
    try:
        return driver.submissions.of(place.run).graph.steps.get(place.name)
    except SpecError:
        return None


def _check_row(what: str, kind: str, row: int | None) -> None:
    if row is not None and kind != "table":
        raise SpecError(Problem(f"{what} is a {kind}; only tables have rows, so ask without one"))


class Lineage:
    """One question. `tenant` sees its own runs only."""

    def __init__(self, driver: Driver, tenant: str) -> None:
        self._read = driver.database.read
        self._driver = driver
        self._tenant = tenant
        self._left = NODES_LIMIT

    def of_output(self, run: str, output: str, row: int | None, *, down: bool) -> LineageNode:
        """Of a run's named output, or of `<step>.<port>`. Raises NotFound."""
        found = find_output(self._driver, self._tenant, run, output)
        ((kind,),) = self._read(
            "SELECT kind FROM artifacts WHERE step = ? AND port = ?", (found.step, found.port)
        )
        _check_row(f"{run}:{output}", kind, row)
        place = Place(found.digest, found.step, found.port, row)
        return self._walked(self._node(place), place, down)

    def of_digest(self, digest: str, row: int | None, *, down: bool) -> LineageNode:
        """Of an artifact by digest, as the tenant's newest run made or used it.

        The size may be left out. Raises NotFound, SpecError.
        """
        if not _DIGEST.fullmatch(digest):
            message = f"{digest!r:.100} is not a digest; expected sha256:<64 hex>, or with /<bytes>"
            raise SpecError(Problem(message))
        span = (digest, f"{digest}0") if "/" not in digest else (digest, f"{digest}\x00")
        made = self._read(
            "SELECT a.digest, a.step, a.port, a.kind FROM artifacts a JOIN runs r USING (run)"
            " WHERE a.digest >= ? AND a.digest < ? AND r.tenant = ?"
            " ORDER BY r.submitted_ms DESC LIMIT 1",
            (*span, self._tenant),
        )
        if made:
            full, step, port, kind = made[0]
            _check_row(digest, kind, row)
            place = Place(full, step, port, row)
            return self._walked(self._node(place), place, down)
        used = self._read(
            "SELECT u.digest, u.source, u.kind, s.run FROM uses u JOIN steps s USING (step)"
            " JOIN runs r USING (run)"
            " WHERE u.digest >= ? AND u.digest < ? AND r.tenant = ? LIMIT 1",
            (*span, self._tenant),
        )
        if not used:
            raise NotFound(f"no run of tenant {self._tenant} has made or used {digest}")
        full, source, kind, run = used[0]
        _check_row(digest, kind, row)
        node = self._given(full, source, kind, run, row)
        if down:
            users = list(self._users(Place(full, f"{run}/", "", row), everywhere=True))
            node.children = [
                self._walked(child, further, down) if further else child for child, further in users
            ]
        return node

    def _walked(self, root: LineageNode, start: Place, down: bool) -> LineageNode:
        """The answer from `start` on, near things first."""
        waiting, seen = deque([(root, start, 0)]), {start}
        while waiting:
            node, place, depth = waiting.popleft()
            found = self._users(place) if down else self._sources(node, place)
            if depth >= DEPTH_LIMIT or self._left <= 0:
                node.cut = True
                continue
            for child, further in found:
                node.children.append(child)
                if further is not None and further in seen:
                    child.again = True
                elif further is not None:
                    seen.add(further)
                    end = child.children[0] if child.children else child
                    waiting.append((end, further, depth + 1 + len(child.children)))
                if self._left <= 0:
                    node.cut = True
                    break
        return root

    def _node(self, place: Place) -> LineageNode:
        self._left -= 1
        ((op, count),) = self._read("SELECT op, items FROM steps WHERE step = ?", (place.step,))
        made = self._read(
            "SELECT kind, rows FROM artifacts WHERE step = ? AND port = ?", (place.step, place.port)
        )
        kind, rows = made[0] if made else ("", -1)
        label = f"{place.name}.{place.port}" + ("" if place.row is None else f" row {place.row}")
        facts: dict[str, Any] = {"operator": op, "items": count}
        if place.row is None and rows >= 0:
            facts["rows"] = rows
        if kind == "tree" and (node := node_of(self._driver, place)) is not None:
            # What was left as it is by default says little about how weights were made.
            facts["params"] = node.params.model_dump(mode="json", exclude_defaults=True)
        return LineageNode(
            label=label,
            kind="artifact" if place.row is None else "row",
            digest=place.digest,
            run=place.run,
            step=place.name,
            port=place.port,
            row=place.row,
            facts=facts,
        )

    # Up

    def _sources(self, node: LineageNode, place: Place) -> Iterator[Found]:
        """What an artifact or row was made from; tells the node about its task on the way."""
        origin = self._origin(place)
        if place.row is None:
            self._name_only_task(node, place)
        elif origin is not None:
            self._name_task(node, place, origin)
        # Weights come first: they lead back through all that they were made from.
        uses = self._read(
            "SELECT digest, port, kind, source, rows FROM uses WHERE step = ?"
            " ORDER BY kind != 'tree', port",
            (place.step,),
        )
        for digest, port, kind, source, rows in uses:
            row = None
            if origin is not None and kind == "table":
                if origin[0] != port:
                    continue
                row = origin[1]
            child, further = self._source(node.run, digest, kind, source, row)
            child.used_as = port
            if row is None and kind == "table" and rows >= 0:
                child.facts.setdefault("rows", rows)
            yield child, further

    def _source(self, run: str, digest: str, kind: str, source: str, row: int | None) -> Found:
        root, _, name = source.partition(".")
        if root == "steps":
            step, _, port = name.rpartition(".")
            place = Place(digest, f"{run}/{step}", port, row)
            return self._node(place), place
        given = self._given(digest, source, kind, run, row)
        maker = maker_of(self._driver, self._tenant, digest, before=run) if kind == "tree" else None
        if maker is not None:
            given.children.append(self._node(maker))
        return given, maker

    def _given(self, digest: str, source: str, kind: str, run: str, row: int | None) -> LineageNode:
        """What came from outside: an input, a model, a file."""
        self._left -= 1
        root, _, name = source.partition(".")
        what: Any = {"models": "model", "files": "file"}.get(root, "input")
        facts: dict[str, Any] = {}
        if what == "model" and (called := self._called(run, name)) not in ("", name):
            facts["name"] = called
        label = f"{what} {name}" + ("" if row is None else f" row {row}")
        return LineageNode(label=label, kind=what, digest=digest, run=run, row=row, facts=facts)

    def _called(self, run: str, alias: str) -> str:
        """The registered name behind a model of a run's document, if it has one."""
        try:
            source = self._driver.submissions.of(RunId(run)).graph.models.get(alias)
        except SpecError:
            return ""
        return (source.name or "") if source is not None else ""

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
        items = self._driver.items(StepId(place.step)).items
        if len(origin) > 2:
            wanted = (origin[1], origin[2])
            tasks = [item.task for item in items if (item.row, item.sample) == wanted]
        else:
            tasks = [item.task for item in items]
        if len(tasks) == 1:
            self._tell_task(node, tasks[0])

    def _name_only_task(self, node: LineageNode, place: Place) -> None:
        tasks = {item.task for item in self._driver.items(StepId(place.step)).items}
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

    # Down

    def _users(self, place: Place, *, everywhere: bool = False) -> Iterator[Found]:
        """What was made of an artifact in its run, and of weights that later runs were given.

        `everywhere`: in all runs of the tenant, for what came from outside.
        """
        uses = self._read(
            "SELECT u.step, u.port FROM uses u JOIN steps s USING (step) JOIN runs r USING (run)"
            " WHERE u.digest = ? AND r.tenant = ? AND (? OR s.run = ?"
            " OR (u.kind = 'tree' AND u.source NOT LIKE 'steps.%'))"
            " ORDER BY r.submitted_ms, s.position",
            (place.digest, self._tenant, everywhere, place.run),
        )
        for step, port in uses:
            made = self._read("SELECT digest, port FROM artifacts WHERE step = ?", (step,))
            for out_digest, out_port in made:
                for row in self._rows_made(step, out_port, port, place.row):
                    further = Place(out_digest, step, out_port, row)
                    yield self._node(further), further

    def _rows_made(self, step: str, out_port: str, port: str, row: int | None) -> list[int | None]:
        """Rows of an output that were made from a row of an input; None for the whole."""
        lines = self._origins(step, out_port) if row is not None else None
        if lines is None:
            return [None]
        origins = (msgspec.json.decode(line) for line in lines)
        made = [number for number, origin in enumerate(origins) if origin[:2] == [port, row]]
        return [*made[:ROWS_LIMIT]]
