"""How weights were made: their card, two of them side by side, and their lineage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowmesh.base.errors import NotFound, SpecError
from flowmesh.cards import Evaluation, ModelCard
from flowmesh.cli.cards import cell, listing, side_by_side, told
from flowmesh.cli.main import cli
from flowmesh.cli.options import App
from flowmesh.cli.tree import drawn
from flowmesh.sdk.client import Client
from flowmesh.sdk.compare import compare
from flowmesh.sdk.runs import Run
from flowmesh.server.lineage import DEPTH_LIMIT
from flowmesh.wire import LineageNode
from support.models import TOKEN, Bench, bench, training


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def client(served: Bench) -> Client:
    return served.client("alice")


def chain(rounds: int) -> dict[str, Any]:
    """Tune again and again, each time from what the time before has made; measure each."""
    steps: dict[str, Any] = {}
    for number in range(1, rounds + 1):
        tune = {"op": "tune", "data": "${inputs.data}", "epochs": number}
        if number > 1:
            tune |= {
                "adapter": f"${{steps.tune{number - 1}.adapter}}",
                "data": f"${{steps.measure{number - 1}.rows}}",
            }
        steps[f"tune{number}"] = tune
        steps[f"measure{number}"] = {
            "op": "measure",
            "data": "${inputs.data}",
            "adapter": f"${{steps.tune{number}.adapter}}",
        }
    outputs = {"adapter": f"${{steps.tune{rounds}.adapter}}"}
    return {
        "flowmesh": 1,
        "inputs": {"data": {"type": "table"}},
        "steps": steps,
        "outputs": outputs,
    }


@pytest.fixture(scope="module")
def first(served: Bench, client: Client) -> Run:
    run = served.run(client, chain(2))
    client.tag_model(f"{run.id}:adapter", "bot@prod")
    return run


@pytest.fixture(scope="module")
def second(served: Bench, client: Client, first: Run) -> Run:
    """Goes on from what the tag stands for."""
    workflow = training(rate=0.5)
    workflow["models"] = {"before": {"name": "bot@prod"}}
    workflow["steps"]["tune"]["adapter"] = "${models.before}"
    run = served.run(client, workflow)
    client.tag_model(f"{run.id}:adapter", "bot@next")
    return run


def test_a_card_tells_parents_data_training_and_what_was_measured(
    client: Client, first: Run, second: Run
) -> None:
    card = client.model_card("bot@next")
    assert (card.kind, card.op, card.run, card.step, card.port) == (
        "adapter",
        "tune",
        second.id,
        "tune",
        "adapter",
    )
    assert card.names == ["bot@next"]
    assert card.params == {"rate": 0.5, "epochs": 1}
    assert [(one.level, one.used_as, one.run, one.step, one.names) for one in card.parents] == [
        (1, "adapter", first.id, "tune2", ["bot@prod"]),
        (2, "adapter", first.id, "tune1", []),
    ]
    assert [(one.used_as, one.rows, one.source) for one in card.data] == [
        ("data", 2, "inputs.data")
    ]
    assert card.training == {"tokens": 12, "last_loss": 0.25}
    assert [(one.step, one.op) for one in card.evaluations] == [("measure", "measure")]
    assert [entry.tag for entry in card.history] == ["next", "prod"]


def test_what_was_measured_of_later_weights_is_not_told_of_these(
    client: Client, first: Run
) -> None:
    card = client.model_card(f"{first.id}:tune1.adapter")
    assert [one.step for one in card.evaluations] == ["measure1"]
    assert card.history == []


def test_two_cards_side_by_side(client: Client, first: Run, second: Run) -> None:
    a, b = client.model_card("bot@prod"), client.model_card("bot@next")
    lines = {(one.about, one.what): one for one in compare(a, b)}
    assert (lines["parameter", "rate"].a, lines["parameter", "rate"].b) == (0.1, 0.5)
    assert (lines["parameter", "epochs"].a, lines["parameter", "epochs"].b) == (2, 1)
    assert lines["training", "tokens"].is_equal
    assert (lines["training", "last_loss"].a, lines["training", "last_loss"].b) == (0.05, 0.25)
    assert lines["parent", "adapter"].b == a.digest
    assert (lines["data", "data rows"].a, lines["data", "data rows"].b) == (1, 2)
    assert lines["evaluation", "measure2.accuracy"].b is None
    same = compare(a, a)
    assert all(line.is_equal for line in same)
    assert not [line for line in same if line.about == "parameter"]
    text = side_by_side("bot@prod", "bot@next", compare(a, b))
    assert [line.split() for line in text.splitlines() if "rate" in line] == [
        ["parameter", "rate", "0.1", "0.5"]
    ]
    assert "(1)" in side_by_side("bot", "bot", same)


def test_settings_within_settings_and_rounds_of_a_loop_are_compared() -> None:
    def card(rank: int, rounds: tuple[int, ...]) -> ModelCard:
        measured = [
            Evaluation(step=f"improve[{number}].eval[t=0.5]", op="evaluate", values={"accuracy": 1})
            for number in rounds
        ]
        digest = f"sha256:{'a' * 64}/1"
        return ModelCard(
            what="x",
            kind="adapter",
            digest=digest,
            size_bytes=1,
            params={"lora": {"r": rank, "alpha": 16}, "none": {}},
            evaluations=measured,
        )

    def known(a: ModelCard, b: ModelCard) -> list[tuple[str, Any, Any]]:
        told = ("parameter", "evaluation")
        return [(one.what, one.a, one.b) for one in compare(a, b) if one.about in told]

    assert known(card(8, (1,)), card(4, (2,))) == [
        ("lora.r", 8, 4),
        ("improve.eval[t=0.5].accuracy", 1, 1),
    ]
    assert known(card(8, (1, 2)), card(8, ())) == [
        ("improve[1].eval[t=0.5].accuracy", 1, None),
        ("improve[2].eval[t=0.5].accuracy", 1, None),
    ]


def test_lineage_goes_back_to_the_data_of_the_first_run(
    client: Client, first: Run, second: Run
) -> None:
    root = client.lineage(run=second.id, output="adapter")
    assert root.facts["params"] == {"rate": 0.5}
    adapter, data = root.children
    assert (adapter.used_as, adapter.kind, adapter.facts["name"]) == (
        "adapter",
        "model",
        "bot@prod",
    )
    (made,) = adapter.children
    assert (made.run, made.label, made.facts["params"]) == (
        first.id,
        "tune2.adapter",
        {"epochs": 2},
    )
    assert [one.label for one in made.children] == ["tune1.adapter", "measure1.rows"]
    assert (data.label, data.used_as, data.facts["rows"]) == ("input data", "data", 2)
    text = drawn(root).splitlines()
    assert text[0].startswith("tune.adapter (artifact)  sha256:")
    assert "by tune" in text[0] and "with rate 0.5" in text[0]
    assert "called bot@prod" in text[1]
    assert any("data: input data" in line and "2 rows" in line for line in text)
    down = client.lineage(run=first.id, output="tune1.adapter", direction="down")
    found = json.dumps(down.model_dump())
    assert second.id in found, "weights are followed into the runs that were given them"


def nodes(root: LineageNode) -> Iterator[tuple[LineageNode, int]]:
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in node.children]


def test_a_long_chain_is_told_once_and_cut_where_it_is_too_long(
    served: Bench, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round is reached by two roads: told at each of them, 2**12 nodes would come."""
    run = served.run(client, chain(12))
    root = client.lineage(run=run.id, output="adapter")
    labels = [node.label for node, _ in nodes(root) if not node.again]
    made = [label for label in labels if not label.startswith("input")]
    assert len(made) == len(set(made)) == 12 + 11
    assert not any(node.cut for node, _ in nodes(root))
    assert sum("(as above)" in line for line in drawn(root).splitlines()) == 11
    monkeypatch.setattr("flowmesh.server.lineage.DEPTH_LIMIT", 3)
    short = list(nodes(client.lineage(run=run.id, output="adapter")))
    assert max(depth for _, depth in short) == 3
    assert {depth for node, depth in short if node.cut} == {3}
    monkeypatch.setattr("flowmesh.server.lineage.NODES_LIMIT", 5)
    few = [node for node, _ in nodes(client.lineage(run=run.id, output="adapter"))]
    assert len(few) == 5
    assert any(node.cut for node in few)


def test_the_deepest_answer_can_be_read() -> None:
    """Readers of JSON have limits of their own."""
    root = LineageNode(label="0", kind="artifact")
    for number in range(1, DEPTH_LIMIT + 3):
        root = LineageNode(label=str(number), kind="artifact", children=[root])
    assert LineageNode.model_validate_json(root.model_dump_json()) == root
    assert len(drawn(root).splitlines()) == DEPTH_LIMIT + 3


def test_what_is_told_further_down_is_said_to_be_there() -> None:
    """The nearest place tells it in full, and need not be drawn first."""
    full = LineageNode(
        label="a.rows", kind="artifact", children=[LineageNode(label="b", kind="input")]
    )
    named = LineageNode(label="a.rows", kind="artifact", again=True, used_as="data")
    root = LineageNode(label="r", kind="artifact", children=[named, full, named])
    assert drawn(root).splitlines() == [
        "r (artifact)",
        "├─ data: a.rows (artifact) (as below)",
        "├─ a.rows (artifact)",
        "│  └─ b (input)",
        "└─ data: a.rows (artifact) (as above)",
    ]


def test_what_people_read(client: Client, first: Run, second: Run) -> None:
    text = told(client.model_card("bot@next"))
    assert f"made by tune, step tune of run {second.id} (port adapter)" in text
    for part in ("made from:", "data:", "training:", "measured by measure", "history"):
        assert part in text
    assert f"{first.id}:tune2" in text
    row = next(line for line in listing(client.models()).splitlines() if "next" in line)
    assert row.split()[:3] == ["bot", "next", "adapter"]
    bare = ModelCard(
        what="x", kind="model", digest=f"sha256:{'a' * 64}/1", size_bytes=1, source="y"
    )
    assert told(bare).splitlines() == ["x: model, 1 B", bare.digest, "from y"]
    old = bare.model_copy(update={"size_bytes": 0, "source": ""})
    assert told(old).splitlines() == ["x: model", bare.digest], "sizes were not always kept"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (0.123456789, "0.123457"),
        (3, "3"),
        (f"sha256:{'ab' * 32}/7", "sha256:abababababab"),
        ("y" * 51, "y" * 47 + "..."),
        ([], "none"),
    ],
)
def test_a_cell(value: Any, text: str) -> None:
    assert cell(value) == text


def command(served: Bench, *arguments: str) -> Any:
    options = ["--server", served.url, "--token", TOKEN, "--tenant", "alice"]
    app = App(served.home / "none", as_json="--json" in arguments)
    done = CliRunner().invoke(cli, ["models", *arguments, *options], obj=app)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout) if app.as_json else done.stdout


def test_the_commands(served: Bench, first: Run, second: Run, tmp_path: Path) -> None:
    tagged = command(served, "tag", "bot@next", "bot@spare", "--json")
    assert (tagged["tag"], tagged["source"]) == ("spare", "bot@next")
    assert "bot@spare: adapter from" in command(served, "tag", f"{second.id}:adapter", "bot@spare")
    assert {one["tag"] for one in command(served, "--json")} >= {"prod", "next", "spare"}
    assert command(served, "show", "bot@spare", "--json")["op"] == "tune"
    assert "parameters:" in command(served, "show", "bot@spare")
    compared = command(served, "compare", "bot@prod", "bot@next", "--json")
    assert {"about": "parameter", "what": "rate", "a": 0.1, "b": 0.5} in compared["lines"]
    assert "last_loss" in command(served, "compare", "bot@prod", "bot@next")
    place = tmp_path / "weights"
    assert command(served, "download", "bot@spare", str(place)).strip() == str(place)
    assert (place / "adapter_config.json").exists()
    assert command(served, "rm", "bot@spare").startswith("removed bot@spare, which was sha256:")
    assert "spare" not in {one["tag"] for one in command(served, "list", "--json")}


def test_a_name_without_the_tag_that_is_meant_has_a_history(served: Bench, second: Run) -> None:
    command(served, "tag", f"{second.id}:adapter", "helper@prod")
    told = command(served, "show", "helper")
    assert told.startswith(
        "model 'helper' has no tag 'latest'; it has: prod\n\nhistory, the newest"
    )
    (entry,) = command(served, "show", "helper", "--json")["history"]
    assert (entry["tag"], entry["by"]) == ("prod", "alice")
    command(served, "rm", "helper")
    assert "removed" in command(served, "show", "helper")
    client = served.client("alice")
    for what in ("helper@next", "helpers"):
        with pytest.raises(NotFound):
            client.model_card(what)
    assert client.model_history("helpers") == []


def test_what_cannot_be_asked_is_told_plainly(served: Bench, second: Run) -> None:
    client = served.client("alice")
    adapter = second.output("adapter").digest
    with pytest.raises(SpecError, match=f"{second.id}:adapter is a tree; only tables have rows"):
        client.lineage(run=second.id, output="adapter", row=0)
    with pytest.raises(SpecError, match="is a tree; only tables have rows"):
        client.lineage(digest=adapter, row=0)
    assert client.lineage(digest=adapter.partition("/")[0]).digest == adapter
    for digest in ("sha256:zz", adapter[:20]):
        with pytest.raises(SpecError, match="is not a digest; expected sha256:<64 hex>"):
            client.lineage(digest=digest)


def test_a_model_to_add_is_somewhere() -> None:
    for arguments in ([], ["--path", "x", "--package", "y"]):
        done = CliRunner().invoke(cli, ["models", "add", "x", *arguments], obj=App(Path("none")))
        assert done.exit_code == 2
        assert "exactly one of --package, --path and --hub" in done.output
