"""The declarations of generate, choose and embed: what is refused, and what names a task."""

from typing import Any

import pytest
from pydantic import ValidationError

from flowmesh.base.digest import Digest
from flowmesh.operators.catalog import catalog
from flowmesh.operators.generate import (
    CHOOSE,
    EMBED,
    GENERATE,
    ChooseParams,
    EmbedParams,
    GenerateParams,
)
from flowmesh.spec.action import Artifact
from flowmesh.spec.expand import Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.operator import ParamError
from flowmesh.spec.workflow import load


def task(sample: int = 0, **given: Any) -> dict[str, Any]:
    params = GenerateParams.model_validate(given)
    return GENERATE.task(params, params.model_dump(mode="json"), sample)


def refusal(params: type, **given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        params.model_validate(given)
    error = caught.value.errors()[0]
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, ParamError):
        return cause.field
    return str(error["loc"][0])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "b"}], "chat": False}, "messages"),
        ({"prompt": "a", "chat": False, "system": "s"}, "system"),
        ({"messages": [{"role": "system", "content": "b"}], "system": "s"}, "system"),
        ({"prompt": "a", "samples": 0}, "samples"),
        ({"prompt": "a", "samples": 1025}, "samples"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 32769}, "max_tokens"),
        ({"prompt": "a", "temperature": -0.1}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "temperature": 10.1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_p": 1.1}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**63}, "seed"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "dtype": "float16"}, "dtype"),
        ({"prompt": "a", "into": "two words"}, "into"),
        ({"prompt": "a", "into": "finish_reason"}, "into"),
        ({"prompt": "a", "into": "completion_tokens"}, "into"),
    ],
)
def test_generate_refuses(given: dict[str, Any], field: str) -> None:
    assert refusal(GenerateParams, **given) == field


@pytest.mark.parametrize("choices", [["a"], ["a"] * 2, ["a", ""], list(map(str, range(65)))])
def test_choose_refuses_too_few_many_or_equal_choices(choices: list[str]) -> None:
    assert refusal(ChooseParams, prompt="p", choices=choices) == "choices"


def test_a_prompt_and_its_spelling_as_messages_are_one_task() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    assert task(prompt="p", system="s") == task(messages=messages)
    assert task(prompt="p", system="s") == task(messages=messages[1:], system="s")
    assert task(prompt="p") != task(prompt="p", chat=False)


def test_a_task_is_named_as_ever_unless_it_asks_for_tokens() -> None:
    """Pinned: other parameters here would have all work of before done again."""
    plain = {
        "messages": [{"role": "user", "content": "p"}],
        "max_tokens": 128,
        "stop": [],
        "logprobs": False,
        "temperature": 0.0,
    }
    assert task(prompt="p") == plain
    assert task(prompt="p", tokens=False) == plain
    assert task(prompt="p", tokens=True) == plain | {"tokens": True}
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": None, "sample": 2}
    assert task(2, prompt="p", temperature=1) == plain | drawn


def expanded(operator: str, adapter: str) -> tuple[str, str]:
    """The task and the batch key of one row with an adapter, or with none if it is empty."""
    more = "choices: [a, b]" if operator == "choose" else "max_tokens: 4"
    if adapter:
        more += f", adapter: {adapter}"
    text = (
        "flowmesh: 1\ninputs: {rows: {type: table}}\nsteps: {s: {"
        f"op: {operator}, rows: '${{inputs.rows}}', model: m, prompt: p, {more}}}}}\n"
    )
    workflow, positions = load(text)
    node = build(workflow, positions, catalog(), {}, {}).steps["s"]
    rows = Artifact("table", str(Digest.of(b"rows")), 1, ("q",))
    names = {"model": "m"} | ({"adapter": adapter} if adapter else {})
    trees = {port: Artifact("tree", str(Digest.of(n.encode()))) for port, n in names.items()}
    made = expand(node, {"rows": rows, **trees}, [{}], Scope("r", "t", "d"))
    (task,) = made.actions
    return task, made.batch_key


@pytest.mark.parametrize("operator", ["generate", "choose"])
def test_adapters_make_other_tasks_of_one_batch_key(operator: str) -> None:
    found = [expanded(operator, adapter) for adapter in ("", "one", "two")]
    assert len({task for task, _ in found}) == 3
    assert len({key for _, key in found}) == 1
    assert "adapter" not in EMBED.inputs


def test_greedy_forgets_what_can_not_change_it() -> None:
    plain = task(prompt="p")
    assert task(3, prompt="p", samples=8, seed=5, top_p=0.5, top_k=3, into="x") == plain
    assert task(prompt="p", stop=["b", "a", "b"]) == task(prompt="p", stop=["a", "b"])


@pytest.mark.parametrize(
    "given", [{"top_p": 0.5}, {"top_k": 3}, {"seed": 6}, {"temperature": 0.6}, {"max_tokens": 5}]
)
def test_what_may_change_a_draw_is_in_its_task(given: dict[str, Any]) -> None:
    base = {"prompt": "p", "temperature": 0.5, "seed": 5}
    assert task(**base) != task(**(base | given))
    assert task(0, **base) != task(1, **base)
    assert task(0, **base, samples=2, into="x") == task(0, **base)


def test_only_draws_without_a_seed_are_fresh_in_each_run() -> None:
    kinds = [
        GENERATE.determinism(GenerateParams(prompt="p", temperature=t, seed=s))
        for t, s in ((0.0, None), (1.0, 3), (1.0, None))
    ]
    assert kinds == ["pure", "pure", "sampled"]


def test_shaped_rows_have_the_declared_columns() -> None:
    row = {"text": "t", "finish_reason": "stop", "logprobs": {"tokens": [], "logprobs": []}}
    row |= {"prompt_tokens": [1], "completion_tokens": [2]}
    for params in (
        GenerateParams(prompt="p"),
        GenerateParams(prompt="p", samples=2, logprobs=True, into="x"),
        GenerateParams(prompt="p", logprobs=True, tokens=True),
    ):
        (shaped,) = GENERATE.shape(params, [row], 1)
        assert tuple(shaped) == GENERATE.adds(params)
    chosen = {"choice": "a", "probability": 0.9, "probabilities": {"a": 0.9, "b": 0.1}}
    params = ChooseParams(prompt="p", choices=["a", "b"], into="verdict")
    (shaped,) = CHOOSE.shape(params, [chosen], 0)
    assert tuple(shaped) == CHOOSE.adds(params)
    assert shaped["verdict_probability"] == 0.9
    embed = EmbedParams(text="t")
    assert EMBED.shape(embed, [{"embedding": [1.0]}], 0) == [{"embedding": [1.0]}]


def test_work_grows_with_prompt_and_answer() -> None:
    short, long = task(prompt="p"), task(prompt="p" * 1000)
    least = GENERATE.amounts_of(short, {}).work
    assert least < GENERATE.amounts_of(long, {}).work
    assert least < GENERATE.amounts_of(task(prompt="p", max_tokens=1000), {}).work
