"""From a step and its inputs to items and the actions that they need: pure, and exact.

An action document holds whatever may change the result and nothing else, so equal work of
any steps, runs and tenants meets in one task, unless its salt keeps it apart:

    effect, or `share: never`        item:<run>/<step>/<row>/<sample>
    sampled without `reuse`          run:<run>
    otherwise, by `share`            domain:<domain>, tenant:<tenant> or run:<run>
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowmesh.spec.action import Action, Bound, artifacts_of, task_of
from flowmesh.spec.nodes import StepNode
from flowmesh.spec.operator import Amounts
from flowmesh.spec.prefixes import Prefix, common_beginnings
from flowmesh.spec.templates import RenderError, renderer


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose work it is; decides with whom it may be shared."""

    run: str
    tenant: str
    domain: str


@dataclass(frozen=True, slots=True)
class Item:
    """One row (and sample) of a step, and the task that it needs. Rows count from 0."""

    row: int
    sample: int
    task: str


class Refused(NamedTuple):
    """An item that cannot become a task: its template failed."""

    row: int
    sample: int
    message: str


@dataclass(frozen=True, slots=True)
class Expansion:
    """Items in the order of rows and samples.

    Attributes:
        actions: document of each distinct task.
        batch_key: of all of them.
        amounts: what each distinct task asks of a machine.
        prefixes: what tasks have in common that is computed once in a batch; see `prefixes.py`.
    """

    items: tuple[Item, ...]
    actions: Mapping[str, dict[str, Any]]
    batch_key: str
    amounts: Mapping[str, Amounts]
    prefixes: Mapping[str, Prefix]
    failed: tuple[Refused, ...] = ()


def expand(
    node: StepNode,
    bound: Mapping[str, Bound],
    rows: Sequence[Mapping[str, Any]] | None,
    scope: Scope,
) -> Expansion:
    """Make the items of a step.

    Args:
        bound: artifacts of every port that is bound, of `rows` too.
        rows: content of the port `rows`; None for a whole operator.
    """
    maker = _Maker(node, bound, scope)
    if node.op.grain == "whole":
        maker.add(0, 0, node.params.model_dump(mode="json"), {})
    else:
        assert rows is not None, f"{node.name} works on rows"
        _expand_rows(maker, node, rows)
    return maker.expansion()


def _expand_rows(maker: "_Maker", node: StepNode, rows: Sequence[Mapping[str, Any]]) -> None:
    plain = node.params.model_dump(mode="json")
    render = _templates(node, plain)
    seen = node.op.sees(node.params)
    samples = range(node.op.samples(node.params))
    for number, row in enumerate(rows):
        try:
            rendered = {**plain, **{name: part(row) for name, part in render.items()}}
            extra = {} if seen == () else {"row": _as_written(_seen(row, seen))}
        except RenderError as error:
            maker.failed += (Refused(number, sample, str(error)) for sample in samples)
            continue
        for sample in samples:
            maker.add(number, sample, rendered, extra)


def _templates(
    node: StepNode, plain: Mapping[str, Any]
) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    def named(parameter: str) -> Callable[[Mapping[str, Any]], Any]:
        render = renderer(plain[parameter])

        def render_row(row: Mapping[str, Any]) -> Any:
            try:
                return render(row)
            except RenderError as error:
                raise RenderError(f"{parameter}: {error}") from None

        return render_row

    return {parameter: named(parameter) for parameter in node.op.templated}


def _as_written(row: Mapping[str, Any]) -> str:
    """A row as JSON text: canonical numbers would make 1.0 an integer under a function's eyes."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _seen(row: Mapping[str, Any], columns: tuple[str, ...] | None) -> dict[str, Any]:
    if columns is None:
        return dict(row)
    for column in columns:
        if column not in row:
            raise RenderError(f"{column!r} is not in this row")
    return {column: row[column] for column in columns}


@dataclass(slots=True)
class _Maker:
    """Collects items and the distinct tasks behind them."""

    node: StepNode
    bound: Mapping[str, Bound]
    scope: Scope
    items: list[Item] = field(default_factory=list)
    actions: dict[str, dict[str, Any]] = field(default_factory=dict)
    amounts: dict[str, Amounts] = field(default_factory=dict)
    failed: list[Refused] = field(default_factory=list)
    _inputs: dict[str, Bound] = field(init=False)
    _engine: str = field(init=False)
    _batch_key: str = field(init=False)

    def __post_init__(self) -> None:
        op = self.node.op
        #: A row's content is in its action already: the rest of its table changes nothing.
        own = {"rows"} if op.grain == "row" else set()
        self._inputs = {port: one for port, one in self.bound.items() if port not in own}
        self._engine = op.engine(self.node.params)
        self._batch_key = op.batch_key(self._engine, list(self._trees("model")))

    def _trees(self, kind: str) -> Iterator[str]:
        for port, declared in self.node.op.inputs.items():
            if declared.kind == kind and port in self._inputs:
                yield from (artifact.digest for artifact in artifacts_of(self._inputs[port]))

    def expansion(self) -> Expansion:
        return Expansion(
            tuple(self.items),
            self.actions,
            self._batch_key,
            self.amounts,
            self._prefixes(),
            tuple(self.failed),
        )

    def _prefixes(self) -> dict[str, Prefix]:
        if not self.node.op.shares_prefixes:
            return {}
        return common_beginnings(self.amounts, "/".join([self._batch_key, *self._trees("adapter")]))

    def add(
        self, row: int, sample: int, rendered: Mapping[str, Any], extra: dict[str, Any]
    ) -> None:
        op = self.node.op
        action = Action(
            op=op.name,
            version=op.version,
            params={**op.task(self.node.params, rendered, sample), **extra},
            inputs=self._inputs,
            engine=self._engine,
            salt=self._salt(row, sample),
            limits=frozenset(op.limits),
        )
        document = action.document()
        task = task_of(document)
        self.items.append(Item(row, sample, task))
        if task not in self.actions:
            self.actions[task] = document
            self.amounts[task] = op.amounts_of(action.params, self._inputs)

    def _salt(self, row: int, sample: int) -> str:
        node, scope = self.node, self.scope
        determinism = node.op.determinism(node.params)
        if determinism == "effect" or node.share == "never":
            return f"item:{scope.run}/{node.name}/{row}/{sample}"
        if determinism == "sampled" and node.reuse is None:
            return f"run:{scope.run}"
        return {
            "domain": f"domain:{scope.domain}",
            "tenant": f"tenant:{scope.tenant}",
            "run": f"run:{scope.run}",
        }[node.share]
