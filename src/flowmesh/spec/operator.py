"""What an operator is to the control plane: data and pure functions of data, no model code.

A *row* operator makes one task for each row (or row and sample) of its `rows` port: its
templates are rendered with the row's columns, and its results are merged back into the row.
A *whole* operator makes one task for the step and yields whole tables, files or trees.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from flowmesh.spec.action import Bound

#: Column names of a table, or None where they can only be known by running.
Columns = tuple[str, ...] | None

#: `pure`: memoised and shared. `sampled`: fresh in each run, shared within it.
#: `effect`: acts on the world; never shared, never memoised.
Determinism = Literal["pure", "sampled", "effect"]


class Params(BaseModel):
    """Base of every operator's parameters: frozen, and no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Port:
    """An input of an operator.

    `kind`: a model and an adapter are both trees; tasks of one batch share their models,
    while adapters may differ from task to task.
    `arity`: `one` reference, a `list` of references, or a `map` of names to references.
    """

    kind: Literal["table", "model", "adapter", "file"]
    doc: str
    arity: Literal["one", "list", "map"] = "one"
    required: bool = True


#: Tokens of one task, and work: more is not told apart.
AMOUNT_LIMIT = 10**12


@dataclass(frozen=True, slots=True)
class Amounts:
    """What one task asks of a machine, as far as its action tells beforehand.

    Attributes:
        work: in units whose cost is learnt; counts where no tokens do.
        prompt_tokens: that a model reads, or trains on: an estimate. 0 where no model has a part.
        output_tokens: the most that it may generate.
        prompt: what it reads first, in parts: where the prompts of one batch begin with equal
            parts, its engine reads these once. Empty if it does not.
    """

    work: float = 1.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt: tuple[str, ...] = ()


class ParamError(ValueError):
    """An operator refuses its parameters; `field` is the parameter at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _no_columns(params: Any) -> Columns:
    return ()


def _same(params: Any, rendered: Mapping[str, Any], sample: int) -> dict[str, Any]:
    return dict(rendered)


def _as_is(params: Any, rows: list[dict[str, Any]], sample: int) -> list[dict[str, Any]]:
    return rows


def _only_rows(params: Any) -> Mapping[str, str]:
    return {"rows": "table"}


def _any_ports(params: Any, bound: Collection[str]) -> None:
    return None


def _unknown(params: Any, inputs: Mapping[str, Any]) -> Mapping[str, Columns]:
    return {}


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator, declared. Register it in `operators/catalog.py` or by an entry point.

    Attributes:
        version: raise it whenever equal inputs would give other outputs.
        params: what the user may write beside the ports, with defaults and limits.
        grain: `row` or `whole`, see the module.
        runtime: what a worker must offer to run it, as `transformers` or `tables`.
        entry: `module:function` (an `OpenEngine`, see `runtimes/base.py`) that opens the
            runtime; loaded on workers only.
        preload: modules worth importing once, before children are forked.
        outputs: output port to kind, from the parameters.
        templated: parameters in which every string is a Jinja2 template over the row.
        samples: items for each row.
        sees: columns of the row that go into the action's parameters, under the key `row`:
            () for none of them (a template says what it uses), None for all of them.
        task: (params, rendered params, sample) to the parameters of one task's action:
            what may change its result, and nothing else.
        shape: (params, result rows, sample) to the columns that are merged into the row.
        adds: columns that a row operator adds; None if only running tells.
        columns: whole operators: (params, columns by input port) to columns by output port.
            A port of arity `list` or `map` gives a list or dict of columns. May raise ParamError.
        check: (params, names of the input ports that something is bound to): raises ParamError
            for a port or a parameter that makes no sense with or without another one.
        limits: parameters that bound the work and change no result, as `timeout_s`: work that
            differs in nothing else is equal, and is held to the limits of who asked first.
        determinism: from the parameters.
        engine: `family/numeric format` from the parameters, if it changes results.
        exact: whether the same bytes come out alone or in any batch, from the parameters.
        work: estimated work of an action in units whose cost is learnt; 1 for a small thing.
            Enough for an operator without a language model.
        amounts: (an action's parameters, its inputs) to all that can be told of it; in place of
            `work`.
        shares_prefixes: its engine reads once what prompts of a batch have in common.
        flops_per_parameter: of its models, for a token of `amounts`: 2 to run them, 6 to train
            them. 0 if what it does is counted in units of work and not in tokens.
        max_batch: most tasks of one lease.
        aggregate: row operators: (params, output rows) to the rows of a further output port,
            `summary`: what the step as a whole measured. Empty rows in, rows with the same
            columns out.
        resumable: its engine leaves checkpoints, and goes on from them after an interruption.
        devices: how many GPUs (on a machine without: CPU devices) it needs, from the parameters.
    """

    name: str
    version: int
    summary: str
    params: type[Params]
    inputs: Mapping[str, Port]
    grain: Literal["row", "whole"]
    runtime: str
    entry: str
    preload: tuple[str, ...] = ()
    outputs: Callable[[Any], Mapping[str, str]] = _only_rows
    templated: tuple[str, ...] = ()
    samples: Callable[[Any], int] = lambda params: 1
    sees: Callable[[Any], Columns] = _no_columns
    task: Callable[[Any, Mapping[str, Any], int], dict[str, Any]] = _same
    shape: Callable[[Any, list[dict[str, Any]], int], list[dict[str, Any]]] = _as_is
    adds: Callable[[Any], Columns] = _no_columns
    columns: Callable[[Any, Mapping[str, Any]], Mapping[str, Columns]] = _unknown
    check: Callable[[Any, Collection[str]], None] = _any_ports
    limits: tuple[str, ...] = ()
    determinism: Callable[[Any], Determinism] = lambda params: "pure"
    engine: Callable[[Any], str] = lambda params: ""
    exact: Callable[[Any], bool] = lambda params: True
    work: Callable[[Mapping[str, Any]], float] = lambda action_params: 1.0
    amounts: Callable[[Mapping[str, Any], Mapping[str, Bound]], Amounts] | None = None
    shares_prefixes: bool = False
    flops_per_parameter: float = 0.0
    max_batch: int = 1
    aggregate: Callable[[Any, list[dict[str, Any]]], list[dict[str, Any]]] | None = None
    resumable: bool = False
    devices: Callable[[Any], int] = lambda params: 1

    def amounts_of(self, params: Mapping[str, Any], inputs: Mapping[str, Bound]) -> Amounts:
        """What an action with these parameters and inputs asks of a machine."""
        if self.amounts is None:
            return Amounts(work=self.work(params))
        told = self.amounts(params, inputs)
        # A client may claim any number of rows for a table.
        return replace(
            told,
            work=min(told.work, float(AMOUNT_LIMIT)),
            prompt_tokens=min(told.prompt_tokens, AMOUNT_LIMIT),
        )

    def batch_key(self, engine: str, models: Sequence[str]) -> str:
        """Tasks with equal keys may run in one batch: same operator, engine and models."""
        names = [f"{self.name}@{self.version}", engine, *models]
        return "/".join(name for name in names if name)
