"""Writes what the pages of docs/ take from the code: `make docs`.

A page is written by hand, but for blocks between `<!-- generated: NAME -->` and
`<!-- end -->`, which are made from models, operators, commands and routes. Equal code gives
equal bytes, so that `tests/unit/test_docs.py` can tell when a page is stale.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import interfaces
from in_words import Schema, fields, sentence, table
from pydantic import BaseModel

from flowmesh.core import checkpoints, needs, plan, retry, tasks
from flowmesh.operators.catalog import BUILT_IN
from flowmesh.operators.sql import MEMORY_LIMIT
from flowmesh.runtimes.python_process import ANSWER_LIMIT_BYTES
from flowmesh.server import checkpoints as care
from flowmesh.server.blobs import BLOB_LIMIT_BYTES
from flowmesh.server.driver import OPEN_RUNS_LIMIT, TENANTS_LIMIT
from flowmesh.server.steps import ITEMS_LIMIT, TABLE_LIMIT_BYTES
from flowmesh.spec import document, templates, workflow
from flowmesh.spec import operator as contract
from flowmesh.spec.schema import json_schema

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# The language

PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The document", workflow.Workflow),
    ("A table input", workflow.TableInput),
    ("A file input", workflow.FileInput),
    ("A plain input", workflow.PlainInput),
    ("A model", workflow.ModelSource),
    ("A step", workflow.Step),
    ("A step that is a loop", workflow.LoopStep),
    ("A loop", workflow.Loop),
    ("What a loop carries", workflow.Carry),
)
#: By part, the keys that hold other parts; those are written out in tables of their own.
_NESTED: Mapping[type[BaseModel], Mapping[str, str]] = {
    workflow.Workflow: {
        "inputs": "map of names to inputs, see below",
        "models": "map of names to models, see below",
        "steps": "map of names to steps, see below",
        "outputs": "map of names to references",
    },
    workflow.LoopStep: {"loop": "a loop, see below"},
    workflow.Loop: {
        "carry": "map of names to what is carried, see below",
        "collect": "map of names to references",
        "steps": "map of names to steps, see above",
    },
}


def language() -> str:
    """Every key of the language."""
    text = ""
    for title, model in PARTS:
        schema = model.model_json_schema()

        def meaning(key: str, field: Schema) -> str:
            return str(field["description"])

        for key, words in _NESTED.get(model, {}).items():
            text_of = schema["properties"][key].get("description")
            schema["properties"][key] = {"enum": [], "description": text_of, "words": words}
        text += f"### {title}\n\n{_fields_of(schema, meaning)}\n"
    return text


def _fields_of(schema: Schema, meaning: Callable[[str, Schema], str]) -> str:
    made = fields(schema, meaning)
    for key, field in schema["properties"].items():
        if "words" in field:
            made = made.replace(f"| `{key}` | one of  |", f"| `{key}` | {field['words']} |")
    return made


def limits() -> str:
    """What the language and the server allow, from the constants that say so."""
    rows = [
        ("document", f"{document.SIZE_LIMIT_BYTES:,} bytes"),
        ("nesting of a document", f"{document.DEPTH_LIMIT} levels"),
        ("values in a document, aliases counted", f"{document.VALUES_LIMIT:,}"),
        ("steps, with matrices expanded and loops unrolled", f"{workflow.STEPS_LIMIT:,}"),
        ("rounds of one loop", f"{workflow.ROUNDS_LIMIT:,}"),
        ("combinations of one matrix", f"{workflow.MATRIX_LIMIT:,}"),
        ("length of a name", "63 characters"),
        ("length of a template", f"{templates.TEMPLATE_LIMIT:,} characters"),
        ("steps of work of one rendering", f"{templates.STEPS_LIMIT:,}"),
        ("text that one template gives", f"{templates.TEXT_LIMIT:,} characters"),
        ("length of a condition", f"{templates.CONDITION_LIMIT:,} characters"),
        ("table whose rows become tasks", f"{TABLE_LIMIT_BYTES >> 30} GiB"),
        ("items (rows times samples) of one step", f"{ITEMS_LIMIT:,}"),
        ("open runs of one tenant", f"{OPEN_RUNS_LIMIT:,}"),
        ("tenants that no file of `--tenants` names", f"{TENANTS_LIMIT:,}"),
        ("memory of one SQL query", MEMORY_LIMIT),
        ("answer of one call of a Python function", f"{ANSWER_LIMIT_BYTES:,} bytes"),
        ("one blob sent over HTTP", f"{BLOB_LIMIT_BYTES >> 30} GiB"),
    ]
    return table(("limit", "value"), rows)


# Operators


def operators() -> str:
    """The operators that come with FlowMesh; those of installed packages are not here."""
    return "\n".join(_operator(one) for one in BUILT_IN)


def _operator(op: contract.Operator) -> str:
    ports = [
        (f"`{name}`", _ARITIES[port.arity].format(port.kind), "yes" if port.required else "no",
         sentence(port.doc))
        for name, port in op.inputs.items()
    ]  # fmt: skip
    schema = op.params.model_json_schema()
    text = f"## {op.name}\n\n{op.summary}\n\n{_facts(op)}\n\n"
    text += table(("port", "takes", "required", "meaning"), ports) + "\n"
    if schema.get("properties"):
        text += fields(schema, lambda name, field: sentence(field["description"])) + "\n"
    else:
        text += "It has no parameters.\n\n"
    if op.templated:
        names = ", ".join(f"`{name}`" for name in op.templated)
        text += f"Texts in {names} are templates over the row's columns.\n\n"
    return text + f"Outputs: {OUTPUTS[op.name]}\n\nDeterminism: {DETERMINISM[op.name]}\n"


_ARITIES = {"one": "{}", "list": "list of {}s", "map": "map of names to {}s"}


def _facts(op: contract.Operator) -> str:
    each = "each row and sample" if "samples" in op.params.model_fields else "each row"
    grain = f"{each}, at most {op.max_batch} in a batch" if op.grain == "row" else "the step"
    return f"Version {op.version}. One task for {grain}. Runtime: `{op.runtime}`."


_MERGED = "`rows`: the input rows with"
_TRAINING = ("sft", "dpo", "kto", "reward_model", "grpo", "rloo")
#: What follows from a function of the parameters, in words.
OUTPUTS: Mapping[str, str] = {
    **dict.fromkeys(
        _TRAINING,
        "`adapter`, or `model` where `lora` is null; `metrics`, `summary` and `loss_curve`, see"
        " [training](training.md#what-comes-out).",
    ),
    "transform": "`rows`: the result of the query.",
    "render": f"{_MERGED} the rendered columns.",
    "concat": "`rows`: all rows, in the order of the tables.",
    "split": "one table for each part, by its name.",
    "dedupe": "`rows`: the rows that were kept, in their order.",
    "generate": f"{_MERGED} the column `into`, `sample` where `samples` is above 1,"
    " `finish_reason`; `logprobs` if asked for (`{tokens, logprobs}`: natural logarithms over the"
    " whole vocabulary at temperature 1, one for each token of the answer); `prompt_tokens` and"
    " `completion_tokens` with `tokens`; one output row a sample.",
    "choose": f"{_MERGED} the columns `into`, `<into>_probability` and `<into>_probabilities`.",
    "embed": f"{_MERGED} the column `into`, a list of numbers.",
    "python": f"{_MERGED} the columns that the function returned; several for a row if it"
    " returned a list, none if it returned None.",
    "python_table": "`rows`: the rows that the function returned.",
    "http": f"{_MERGED} the columns `into` and `<into>_status`.",
    "reward": f"{_MERGED} the column `into`, and `<into>_truncated` where texts may be cut;"
    " `summary`: `n`, `mean`, `std`, `ci_low`, `ci_high`, `method`.",
    "judge": f"{_MERGED} `winner`, `preference` and `consistent` of a pair, or `score`, `verdict`"
    " and `probabilities` of a rubric; `reasoning` where the judge writes. `summary`: of pairs `n`,"
    " `win_rate`, `ci_low`, `ci_high`, `method`, `wins`, `losses`, `ties`, `invalid`,"
    " `consistency`; of a rubric `n`, `score`, `ci_low`, `ci_high`, `method`, `invalid`.",
    "evaluate": f"{_MERGED} `score` and the columns of the measure; `summary`: `metric`, `n`,"
    " `value`, `ci_low`, `ci_high`, `method`.",
    "advantages": f"{_MERGED} the column `into`.",
    "policy_update": "`adapter`, or `model` where `lora` is null; with `method: ppo` also `value`,"
    " an adapter or a model like it; `metrics`, one row a step; `summary`, one row; `loss_curve`, a"
    " PNG.",
    "merge_adapter": "`model`.",
    "export": "`model`.",
    "compare": "`rows`: `by`, `first`, `second` and `difference` of each pair; `summary`: `n`,"
    " `first`, `second`, `difference`, `ci_low`, `ci_high`, `method`, `wins`, `losses`, `ties`,"
    " `p_value`, `unmatched`.",
    "harness": "`rows`: of each document and filter `doc_id`, `filter`, `doc`, `target`,"
    " `responses` and the task's metrics; `summary`: `task`, `metric`, `filter`, `n`, `value`,"
    " `ci_low`, `ci_high`, `method` of each metric and filter.",
}
_BY_EFFECT = "`pure`, `sampled` or `effect` for an `effect` of `pure`, `read` or `act`"
DETERMINISM: Mapping[str, str] = {
    **dict.fromkeys(_TRAINING, "`pure`: the seed fixes every draw."),
    **dict.fromkeys(("render", "concat", "split", "dedupe", "choose", "embed"), "`pure`."),
    **dict.fromkeys(("reward", "judge", "evaluate", "compare", "harness"), "`pure`."),
    **dict.fromkeys(("advantages", "policy_update", "merge_adapter", "export"), "`pure`."),
    "transform": "`pure`; `sampled` if the query asks for the time, for chance or for a sample.",
    "generate": "`pure` with a seed or at temperature 0; else `sampled`.",
    "python": f"{_BY_EFFECT}.",
    "python_table": f"{_BY_EFFECT}.",
    "http": f"{_BY_EFFECT}, which follows from the method where it is not said.",
}


# States


def task_states() -> str:
    """The table of `core/tasks.py` as a diagram and as a table."""
    moves = _docstring_rows(tasks)
    text, before = "```mermaid\nstateDiagram-v2\n", ""
    for start, end, when in moves:
        if start == "any":  # an arrow from every state would hide the others
            continue
        before = when = when.replace("the same", before.partition(",")[0]).replace("`", "")
        text += f"    {start.replace('(none)', '[*]')} --> {end}: {when}\n"
    text += "    SUCCEEDED --> [*]\n    FAILED --> [*]\n"
    return f"{text}```\n\n" + table(("from", "to", "when"), moves)


def retries() -> str:
    """The table of `core/retry.py`."""
    return table(("failure", "what happens"), _docstring_rows(retry))


def _docstring_rows(module: Any) -> list[list[str]]:
    """The rows of the table in a module's docstring, without its header."""
    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"{module.__name__} has no table in its docstring"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def times() -> str:
    """The constants behind the words "silent", "back-off" and "remembered"."""
    rows = [
        ("silence after which a worker is lost", f"{plan.LEASE_MS / 1000:g} s"),
        ("attempts that fail as `transient` or `memory`", str(retry.ATTEMPT_LIMIT)),
        ("attempts that fail as `internal`", str(retry.INTERNAL_LIMIT)),
        ("crashes alone", str(retry.CRASH_LIMIT)),
        ("lost workers", str(retry.LOSS_LIMIT)),
        ("lost workers from which on a task runs alone", str(retry.LOSSES_BEFORE_ALONE)),
        ("first back-off; each one after it is twice as long", f"{retry.BACKOFF_MS / 1000:g} s"),
        ("longest back-off", f"{retry.BACKOFF_LIMIT_MS / 1000:g} s"),
        ("a task waits for another worker than it failed on", f"{plan.AVOID_MS / 1000:g} s"),
        ("settled tasks and runs stay in memory", f"{tasks.RETAIN_MS / 1000:g} s"),
        ("cancelled work may take for a checkpoint", f"{checkpoints.STOP_MS / 1000:g} s"),
        ("work waits before its run says that no worker fits", f"{needs.PATIENCE_MS / 1000:g} s"),
        ("progress of a task is kept every", f"{care.GAP_MS / 1000:g} s"),
        ("a superseded checkpoint's blobs stay", f"{care.GRACE_MS / 60_000:g} min"),
        ("a checkpoint stays that nobody wants", f"{care.KEPT_MS / 86_400_000:g} days"),
    ]
    return table(("what", "value"), rows)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "language": language,
    "limits": limits,
    "operators": operators,
    "task-states": task_states,
    "retries": retries,
    "times": times,
    "error-codes": interfaces.error_codes,
    "commands": interfaces.commands,
    "shared-options": interfaces.shared_options,
    "routes": interfaces.routes,
    "bodies": interfaces.bodies,
}


def blocks_of(text: str) -> list[str]:
    """The names of the generated blocks of a page."""
    return [block[2] for block in _BLOCK.finditer(text)]


def filled(text: str) -> str:
    """A page with its generated blocks made anew."""
    return _BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]]() + block[3], text)


def generated() -> dict[Path, str]:
    """Every page that holds something generated, as it should be."""
    known = {one.name: one for one in BUILT_IN}
    schema = json.dumps(json_schema(known), indent=2, ensure_ascii=False)
    found = {DOCS / "workflow.schema.json": schema + "\n"}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        if blocks_of(text):
            found[page] = filled(text)
    return found


def main() -> None:
    for page, text in generated().items():
        page.write_text(text)
        print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
