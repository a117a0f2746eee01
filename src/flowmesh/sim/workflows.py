"""What the simulated tenants run: workflow templates, and the content that names their tasks.

A step's fingerprint is of its template, its model, its settings and the fingerprints of what it
reads; rows, their lengths and their tasks' ids follow from the fingerprint alone. So two runs
that ask for the same thing ask for the same tasks, whoever they are.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from flowmesh.base.ids import TaskId
from flowmesh.core.records import Demand, TaskSpec, Tree
from flowmesh.sim import fitted
from flowmesh.sim.devices import model as model_named
from flowmesh.sim.engines import Engine
from flowmesh.sim.scenario import StepTemplate, Template, parse
from flowmesh.spec.document import Positions, read

Ints = npt.NDArray[np.int64]

RUNTIMES = {"generate": "models", "train": "models", "tool": "tables"}
OPERATORS = {"generate": "generate@1", "train": "train@1", "tool": "tool@1"}
MAX_BATCH = {"generate": 512, "train": 1, "tool": 64}
#: LoRA of rank 16-64 on all linear layers: of the order of a percent of the weights.
ADAPTER_SHARE = 0.01
#: Bytes a parameter while all weights are trained: weights, gradients, Adam's moments.
FULL_TRAINING_BYTES = 16
#: An adapter's training: weights at 16 bits, activations and the adapter's own state.
ADAPTER_TRAINING = 2.3
#: A training task is so many steps long, as far as checkpoints go.
TRAINING_STEPS = 1000


@cache
def templates() -> Mapping[str, Template]:
    """Those that are shipped, by name."""
    source = files("flowmesh.sim") / "templates.yaml"
    data, _ = read(source.read_bytes(), "templates.yaml")
    return {name: parse(Template, one, Positions()) for name, one in data.items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """A batch key: what the control plane is told of it, and the engine that it really is."""

    key: str
    engine: Engine
    demand: Demand


def kind_of(step: StepTemplate) -> Kind:
    """The batch key of a step's tasks."""
    operator = step.operator or OPERATORS[step.kind]
    if step.kind == "tool":
        return Kind(operator, Engine("tool", operator), Demand(operator=operator))
    model = model_named(step.model)
    tree = Tree(f"model:{model.name}", model.weights_bytes)
    key = f"{operator}/{model.name}"
    if step.kind == "generate":
        engine = Engine("generate", operator, model, resident_bytes=model.weights_bytes)
        demand = Demand(
            operator=operator,
            trees=(tree,),
            weights_bytes=model.weights_bytes,
            flops_per_token=2 * model.parameters,
            cache_bytes_per_token=model.cache_bytes_per_token,
            shares_prefixes=True,
        )
        return Kind(key, engine, demand)
    full = step.trains == "all"
    resident = int(model.parameters * (FULL_TRAINING_BYTES if full else ADAPTER_TRAINING))
    engine = Engine("train", operator, model, step.flops_per_parameter, resident)
    demand = Demand(
        operator=operator,
        trees=(tree,),
        weights_bytes=resident,
        flops_per_token=step.flops_per_parameter * model.parameters,
    )
    return Kind(f"{key}/{'full' if full else 'adapter'}", engine, demand)


@dataclass(slots=True)
class Content:
    """The rows of one fingerprint.

    Attributes:
        prompt: tokens, or tokens trained on. output: tokens really generated.
        limit: of output tokens, as the task declares.
        prefix: by row, its name, or one for all; `prefix_tokens` likewise.
    """

    fingerprint: str
    step: StepTemplate
    kind: Kind
    prompt: Ints
    output: Ints
    limit: int = 0
    prefixes: list[str] = field(default_factory=list)
    prefix_tokens: list[int] = field(default_factory=list)
    trees: tuple[Tree, ...] = ()
    source: str = "fitted"

    def __len__(self) -> int:
        return len(self.prompt)

    def specs(self, salt: str, key_salt: str, linger_ms: int) -> list[TaskSpec]:
        """Tasks of all rows; `salt` makes them somebody's own, `key_salt` their batches."""
        step, kind = self.step, self.kind
        runtime, key = RUNTIMES[step.kind], kind.key + key_salt
        batch = step.max_batch or MAX_BATCH[step.kind]
        pack, trees = self.fingerprint, self.trees
        output = 0 if step.kind != "generate" else self.limit
        prompts, tools = self.prompt.tolist(), step.kind == "tool"
        return [
            TaskSpec(
                TaskId(f"{salt}{pack}:{row}"),
                key,
                runtime,
                step.work if tools else (tokens + 4 * output) / 1000,
                batch,
                pack,
                row,
                prompt_tokens=0 if tools else tokens,
                output_tokens=output,
                prefix=self.prefixes[row] if self.prefixes else "",
                prefix_tokens=self.prefix_tokens[row] if self.prefixes else 0,
                linger_ms=linger_ms,
                trees=trees,
            )
            for row, tokens in enumerate(prompts)
        ]


class Library:
    """Contents by fingerprint. `rows` multiplies every step's rows.

    `lengths`: prompt and output tokens of a trace, `[requests, 2]`, for steps that ask for it.
    """

    def __init__(self, rows: float = 1.0, lengths: npt.NDArray[np.float64] | None = None) -> None:
        self._rows = rows
        self._lengths = lengths
        self._known: dict[str, Content] = {}
        self._kinds: dict[StepTemplate, Kind] = {}

    def content(self, fingerprint: str) -> Content:
        return self._known[fingerprint]

    def add(self, step: StepTemplate, settings: str, upstream: tuple[str, ...]) -> str:
        """The fingerprint of a step; its content is drawn when it is first met."""
        name = f"{step.model_dump_json()}|{settings}|{'|'.join(upstream)}"
        fingerprint = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        if fingerprint not in self._known:
            before = tuple(self._known[one] for one in upstream)
            self._known[fingerprint] = self._drawn(fingerprint, step, before)
        return fingerprint

    def _count(self, step: StepTemplate, before: tuple[Content, ...]) -> int:
        if step.kind == "train":
            return 1
        if before:
            first = next((one for one in before if one.step.kind != "train"), None)
            if first is not None and not step.own_rows:
                return max(1, round(len(first) * step.per_row))
        return max(1, round(step.rows * self._rows))

    def _drawn(self, fingerprint: str, step: StepTemplate, before: tuple[Content, ...]) -> Content:
        rng = np.random.Generator(np.random.PCG64(int(fingerprint, 16)))
        kind = self._kinds.setdefault(step, kind_of(step))
        count = self._count(step, before)
        none = np.zeros(count, dtype=np.int64)
        if step.kind == "tool":
            return Content(fingerprint, step, kind, none, none)
        if step.kind == "train":
            rows = len(before[0]) if before else round(step.rows * self._rows)
            tokens = np.asarray([max(1, round(rows * step.tokens * step.epochs))])
            return Content(fingerprint, step, kind, tokens, np.zeros(1, dtype=np.int64))
        prompt, output, source = self._tokens(rng, step, count)
        content = Content(fingerprint, step, kind, prompt, output, step.output.limit)
        content.source = source
        self._prefixes(rng, content)
        trained = [one for one in before if one.step.kind == "train"]
        if step.adapter and trained and kind.engine.model is not None:
            size = int(kind.engine.model.weights_bytes * ADAPTER_SHARE)
            content.trees = (Tree(f"adapter:{trained[-1].fingerprint}", size),)
        return content

    def _tokens(
        self, rng: np.random.Generator, step: StepTemplate, count: int
    ) -> tuple[Ints, Ints, str]:
        if step.lengths == "azure":
            if self._lengths is not None:
                drawn = self._lengths[rng.integers(0, len(self._lengths), count)].astype(np.int64)
                prompt, output, source = drawn[:, 0], drawn[:, 1], "traces"
            else:
                prompt, output = fitted.azure_lengths(rng, count)
                source = "fitted"
            return np.maximum(1, prompt), np.clip(output, 1, step.output.limit), source
        asked, answered = step.prompt, step.output
        prompt = fitted.lognormal(rng, count, asked.median, asked.sigma, asked.limit)
        output = fitted.lognormal(rng, count, answered.median, answered.sigma, answered.limit)
        return prompt + step.prefix, output, ""

    def _prefixes(self, rng: np.random.Generator, content: Content) -> None:
        step = content.step
        if step.prefix_of == "conversation":
            block = fitted.MOONCAKE_BLOCK
            for at, (talk, size, had) in enumerate(fitted.conversations(rng, len(content))):
                content.prompt[at] = size * block
                content.prefixes.append(f"{content.fingerprint}/{talk}" if had > 1 else "mooncake")
                content.prefix_tokens.append(max(had, 1) * block if had else block)
        elif step.prefix:
            name = step.name + step.model if step.prefix_of == "template" else content.fingerprint
            content.prefixes = [f"{name}/{step.prefix}"] * len(content)
            content.prefix_tokens = [step.prefix] * len(content)
