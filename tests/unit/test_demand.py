"""How much work tasks are, what their prompts have in common, and what their models ask for."""

import json
from pathlib import Path
from typing import Any

import pytest

from flowmesh.base.digest import Digest
from flowmesh.base.ids import StepId
from flowmesh.core.events import StepExpanded
from flowmesh.operators.amounts import UNKNOWN_ROW_TOKENS, UNKNOWN_ROWS, reading
from flowmesh.operators.catalog import catalog
from flowmesh.operators.train import PARAMS
from flowmesh.server.demand import Figures, Models
from flowmesh.server.steps import specs_of
from flowmesh.spec.action import Artifact, Bound
from flowmesh.spec.expand import Expansion, Scope, expand
from flowmesh.spec.graph import build
from flowmesh.spec.nodes import StepNode
from flowmesh.spec.operator import AMOUNT_LIMIT, Amounts, Operator, Params
from flowmesh.spec.prefixes import LEAST_TOKENS, Prefix, common_beginnings
from flowmesh.spec.workflow import load
from flowmesh.stores.codec import Codec
from flowmesh.stores.memory import MemoryStore
from flowmesh.stores.trees import Manifest, TreeFile, put_tree

SCOPE = Scope("r", "t", "d")
#: As long as a beginning must be, in characters.
LONG = "long " * (LEAST_TOKENS * 4 // 5 + 1)


def tree(name: str) -> Artifact:
    return Artifact("tree", str(Digest.of(name.encode())))


def step(op: str, more: str) -> StepNode:
    text = (
        "flowmesh: 1\ninputs: {rows: {type: table}}\nsteps: {s: {"
        f"op: {op}, rows: '${{inputs.rows}}', model: m, {more}}}}}\n"
    )
    workflow, positions = load(text)
    return build(workflow, positions, catalog(), {}, {}).steps["s"]


def expanded(node: StepNode, *rows: dict[str, Any], **bound: Artifact) -> Expansion:
    ports: dict[str, Bound] = {"rows": Artifact("table", str(Digest.of(b"")), len(rows))}
    return expand(node, {**ports, "model": tree("m"), **bound}, rows, SCOPE)


def amounts_of(node: StepNode, **row: Any) -> Amounts:
    (found,) = expanded(node, row).amounts.values()
    return found


# Amounts


def test_a_prompt_and_its_answer_are_counted_in_tokens() -> None:
    few = amounts_of(step("generate", "prompt: '{{ q }}', max_tokens: 7"), q="x" * 400)
    assert few.output_tokens == 7
    assert 100 <= few.prompt_tokens <= 110, "400 characters, and what the chat puts around them"
    plain = step("generate", "prompt: '{{ q }}', chat: false, max_tokens: 7")
    assert amounts_of(plain, q="x" * 400).prompt_tokens == 100
    choices = step("choose", "prompt: '{{ q }}', chat: false, choices: [yes sir, no sir]")
    chosen = amounts_of(choices, q="x" * 400)
    assert chosen.output_tokens == 0 and 100 < chosen.prompt_tokens < 110
    assert amounts_of(step("embed", "text: '{{ q }}'"), q="x" * 400).prompt_tokens == 100


def test_a_pair_is_read_twice_and_written_about_twice() -> None:
    texts = {"first": "x" * 40, "second": "y" * 40}
    assert reading({"kind": "rubric", **texts}, {}).prompt_tokens == 22
    pair = reading({"kind": "pairwise", **texts, "max_tokens": 9}, {})
    assert (pair.prompt_tokens, pair.output_tokens) == (44, 18)


@pytest.mark.parametrize("op", sorted(PARAMS))
def test_training_reads_its_rows_as_often_as_it_is_told(op: str) -> None:
    operator: Operator = catalog()[op]
    once = operator.params().model_dump()
    table = Artifact("table", f"sha256:{0:064x}/40000", 100)
    known = operator.amounts_of(once, {"data": table})
    assert known.output_tokens == 0
    assert operator.flops_per_parameter == 6
    drawn = once.get("num_generations", 1)
    each = 100 + once.get("max_completion_length", 0)
    assert known.prompt_tokens == 100 * drawn * each
    twice = operator.amounts_of({**once, "num_train_epochs": 2}, {"data": table})
    assert twice.prompt_tokens == 2 * known.prompt_tokens
    guessed = operator.amounts_of(once, {})
    each += UNKNOWN_ROW_TOKENS - 100
    each = min(each, once.get("max_length") or each)
    assert guessed.prompt_tokens == UNKNOWN_ROWS * drawn * each


def test_long_rows_are_cut_to_what_a_training_reads() -> None:
    sft = catalog()["sft"]
    table = Artifact("table", f"sha256:{0:064x}/4000000", 100)
    params = sft.params(max_length=512).model_dump()  # type: ignore[call-arg]
    assert sft.amounts_of(params, {"data": table}).prompt_tokens == 100 * 512


def test_tables_are_work_by_their_bytes() -> None:
    concat = catalog()["concat"]
    table = Artifact("table", f"sha256:{0:064x}/2000000", 10)
    assert concat.amounts_of({}, {"tables": [table, table]}).work == pytest.approx(5)
    assert concat.amounts_of({}, {"tables": {"a": table}}).work == pytest.approx(3)


def test_an_operator_that_declares_only_its_work_has_amounts() -> None:
    operator = Operator(
        name="mine",
        version=1,
        summary="",
        params=Params,
        inputs={},
        grain="whole",
        runtime="r",
        entry="m:f",
        work=lambda params: 2.0 * params["n"],
    )
    assert operator.amounts_of({"n": 4}, {}) == Amounts(work=8.0)


# Prefixes


def prompts(*parts: tuple[str, ...]) -> dict[str, Amounts]:
    return {str(number): Amounts(prompt=one) for number, one in enumerate(parts)}


def test_prompts_that_begin_alike_have_one_prefix() -> None:
    found = common_beginnings(prompts((LONG, "a"), (LONG, "b"), ("c",)), "key")
    assert found["0"] == found["1"] and found["0"].tokens == -(-len(LONG) // 4)
    assert "2" not in found
    again = common_beginnings(prompts((LONG, "z"), (LONG, "y")), "key")
    assert again["0"] == found["0"], "a name says what the text is, whoever has it"
    assert common_beginnings(prompts((LONG, "z"), (LONG, "y")), "other")["0"] != found["0"]


def test_what_is_short_or_alone_has_no_prefix() -> None:
    assert common_beginnings(prompts(("hi", "a"), ("hi", "b")), "key") == {}
    assert common_beginnings(prompts((LONG,), (LONG + "x",)), "key") == {}
    assert common_beginnings({}, "key") == {}


def test_the_beginning_that_saves_more_is_taken() -> None:
    small = [(LONG, LONG * 3, str(n)) for n in range(3)]
    others = [(LONG, str(n)) for n in range(20)]
    deep = common_beginnings(prompts(*small, others[0]), "key")
    assert len(deep) == 3, "three share four parts; the fourth would cost them that"
    flat = common_beginnings(prompts(*small, *others), "key")
    assert len(set(flat.values())) == 1 and len(flat) == 23


def test_equal_prompts_share_all_of_it() -> None:
    found = common_beginnings(prompts((LONG, "a"), (LONG, "a"), (LONG, "a")), "key")
    assert {one.tokens for one in found.values()} == {-(-len(LONG) // 4) + 1}


def test_a_step_names_the_turns_that_its_prompts_share() -> None:
    more = f"prompt: '{{{{ q }}}}', system: '{LONG}'"
    made = expanded(step("generate", more), {"q": "a"}, {"q": "b"})
    assert len(set(made.prefixes.values())) == 1 and len(made.prefixes) == 2
    other = expanded(step("generate", f"{more}, max_tokens: 3"), {"q": "c"}, {"q": "d"})
    assert set(other.prefixes.values()) == set(made.prefixes.values())
    node = step("generate", f"{more}, adapter: n")
    adapted = expanded(node, {"q": "a"}, {"q": "b"}, adapter=tree("n"))
    assert set(adapted.prefixes.values()).isdisjoint(made.prefixes.values())
    assert expanded(step("embed", f"text: '{LONG} {{{{ q }}}}'"), {"q": 1}, {"q": 2}).prefixes == {}


def test_tasks_carry_what_they_ask_for() -> None:
    node = step("generate", f"prompt: '{{{{ q }}}}', system: '{LONG}', max_tokens: 9")
    made = expanded(node, {"q": "a"}, {"q": "b"})
    first, _ = specs_of(node, made, list(made.actions), "pack", {})
    assert (first.output_tokens, first.batch_key) == (9, made.batch_key)
    assert first.prompt_tokens > first.prefix_tokens >= LEAST_TOKENS
    assert Prefix(first.prefix, first.prefix_tokens) == made.prefixes[first.id]
    alone = expanded(node, {"q": "a"})
    (spec,) = specs_of(node, alone, list(alone.actions), "pack", {})
    assert (spec.prefix, spec.prefix_tokens) == ("", 0)


# Demand

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "dtype": "bfloat16",
}


def model(store: MemoryStore, folder: Path, config: dict[str, Any], size_bytes: int) -> Artifact:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"w" * size_bytes)
    (folder / "tokenizer.json").write_bytes(b"t" * 50)
    return Artifact("tree", str(put_tree(store, folder)))


def test_a_model_tells_what_it_asks_for(tmp_path: Path) -> None:
    store = MemoryStore()
    weights = model(store, tmp_path / "m", CONFIG, 2000)
    node = step("generate", "prompt: p, dtype: float32")
    demand = Models(store).demand(node, {"model": weights})
    assert demand.operator == "generate@2" and demand.shares_prefixes
    assert demand.weights_bytes == 4000, "1000 parameters of 2 bytes, loaded as 4"
    assert demand.flops_per_token == 2000
    assert demand.cache_bytes_per_token == 2 * 30 * 3 * 64 * 4
    (held,) = demand.trees
    assert held.digest == weights.digest and held.size_bytes > 2050
    half = Models(store).demand(step("generate", "prompt: p, dtype: bfloat16"), {"model": weights})
    assert half.weights_bytes == 2000


def test_adapters_are_needed_by_tasks_and_not_by_the_key(tmp_path: Path) -> None:
    store = MemoryStore()
    models, weights = Models(store), model(store, tmp_path / "m", CONFIG, 100)
    adapter = model(store, tmp_path / "a", {}, 30)
    node = step("generate", "prompt: p, adapter: n")
    bound: dict[str, Bound] = {"model": weights, "adapter": adapter}
    assert [one.digest for one in models.demand(node, bound).trees] == [weights.digest]
    (needed,) = models.adapters(node, bound)
    assert (needed.digest, needed.size_bytes) == (adapter.digest, 30 + 50 + 2)


def test_a_model_that_tells_nothing_asks_for_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    node = step("generate", "prompt: p")
    lost = Models(store).demand(node, {"model": tree("nowhere")})
    assert (lost.weights_bytes, lost.flops_per_token) == (0, 0)
    odd = Manifest((TreeFile("config.json", store.put(b"[]")),)).encode()
    assert Models(store).figures(str(store.put(odd))).cache_numbers == 0
    encoder = {**CONFIG, "architectures": ["BertModel"]}
    kept = model(store, tmp_path / "e", encoder, 40)
    assert Models(store).figures(kept.digest).cache_numbers == 0


def test_a_model_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    models, weights = Models(store), model(store, tmp_path / "m", CONFIG, 100)
    first = models.figures(weights.digest)
    monkeypatch.setattr(store, "read", lambda digest: pytest.fail("read again"))
    assert models.figures(weights.digest) == first != Figures()


# What nobody may claim


def test_claims_of_a_client_stay_within_what_a_journal_holds() -> None:
    sft = catalog()["sft"]
    table = Artifact("table", f"sha256:{0:064x}/{10**17}", 1 << 53)
    params = sft.params(num_train_epochs=1000).model_dump()  # type: ignore[call-arg]
    told = sft.amounts_of(params, {"data": table})
    assert told.prompt_tokens == AMOUNT_LIMIT
    assert told.work == AMOUNT_LIMIT and isinstance(told.work, float)


def test_claims_of_a_model_can_be_journaled(tmp_path: Path) -> None:
    store = MemoryStore()
    wild = {**CONFIG, "num_hidden_layers": 10**300, "head_dim": 1e308, "hidden_size": 1e308}
    folder = tmp_path / "m"
    model(store, folder, wild, 10)
    config = store.put((folder / "config.json").read_bytes())
    claimed = [
        TreeFile(f"{part}.safetensors", Digest.parse(f"sha256:{part:064x}/{10**18 - 1}"))
        for part in range(30)
    ]
    wrong = Manifest((TreeFile("config.json", config), *claimed)).encode()
    bound: dict[str, Bound] = {"model": Artifact("tree", str(store.put(wrong)))}
    demand = Models(store).demand(step("generate", "prompt: p"), bound)
    codec = Codec([StepExpanded])
    event = StepExpanded(0, StepId("r/s"), demand=demand)
    assert codec.decode(codec.encode(event)) == event
    odd = model(store, tmp_path / "o", {**CONFIG, "architectures": 5}, 10)
    assert Models(store).figures(odd.digest).cache_numbers == 0
