"""`policy_update`: what it makes, how it goes on after an interruption, what it refuses."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flowmesh.base.digest import Digest
from flowmesh.operators.policy import METRICS_COLUMNS, SUMMARY_COLUMNS
from flowmesh.operators.train_params import Lora
from flowmesh.runtimes.base import Done, Failed, Progress, Stopped
from flowmesh.runtimes.decoding import Decoder, Request
from flowmesh.runtimes.policy.nets import Batch, Policy, Source, load_critic, load_policy
from flowmesh.runtimes.sampling import Sampling
from flowmesh.runtimes.weights import load_weights
from flowmesh.spec.action import Artifact
from support.blobs import DirBlobs
from support.rollouts import make_rollouts, refused, run_update, update_work, updated
from support.tiny_adapter import make_adapter
from support.tiny_model import CONTEXT_TOKENS, make_tiny

Ports = dict[str, Artifact]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> DirBlobs:
    return DirBlobs(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def model(blobs: DirBlobs, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "model")
    return Artifact("tree", str(blobs.put_tree(folder)))


@pytest.fixture(scope="module")
def other(blobs: DirBlobs, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "other", seed=1)
    return Artifact("tree", str(blobs.put_tree(folder)))


@pytest.fixture
def ports(blobs: DirBlobs, model: Artifact) -> Ports:
    return {"rollouts": blobs.put_table(make_rollouts()), "model": model}


def weights(outputs: Mapping[str, Artifact]) -> dict[str, str]:
    return {port: one.digest for port, one in outputs.items() if one.kind == "tree"}


class Watcher:
    """A monitor that remembers, and asks to stop after some step."""

    def __init__(self, *, stop_at: int = 0, interruptions_per_hour: float = 0.01) -> None:
        self.interruptions_per_hour = interruptions_per_hour
        self.steps: list[Progress] = []
        self.checkpoints: list[tuple[Digest, int]] = []
        self._stop_at = stop_at

    @property
    def stopping(self) -> bool:
        return bool(self.steps) and self.steps[-1].step == self._stop_at

    def progress(self, progress: Progress) -> None:
        self.steps.append(progress)

    def saved(self, tree: Digest, step: int) -> None:
        self.checkpoints.append((tree, step))


# What it makes


def test_an_adapter_and_its_tables_come_out(blobs: DirBlobs, ports: Ports) -> None:
    found = updated(blobs, ports, num_iterations=2, beta=0.1)
    assert sorted(path.name for path in blobs.tree(found["adapter"].address).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "flowmesh.json",
    ]
    metrics, [summary] = blobs.rows(found["metrics"]), blobs.rows(found["summary"])
    assert found["metrics"].columns == METRICS_COLUMNS == tuple(metrics[0])
    assert found["summary"].columns == SUMMARY_COLUMNS == tuple(summary)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and metrics[-1]["kl"] > 0
    assert metrics[-1]["policy_loss"] < metrics[0]["policy_loss"]
    assert summary["steps"] == 4 and summary["rollouts"] == 6
    assert blobs.path(found["loss_curve"].address).read_bytes().startswith(b"\x89PNG")


def test_equal_updates_are_equal_to_the_byte(blobs: DirBlobs, ports: Ports) -> None:
    """The picture too; another seed has another order and another start."""
    one, two = (updated(blobs, ports, method="ppo") for _ in range(2))
    assert weights(one) == weights(two) and set(weights(one)) == {"adapter", "value"}
    assert one["loss_curve"] == two["loss_curve"]
    assert weights(updated(blobs, ports, method="ppo", seed=1)) != weights(one)


def test_all_weights_can_be_trained(blobs: DirBlobs, ports: Ports) -> None:
    found = updated(blobs, ports, method="ppo", lora=None)
    for port in ("model", "value"):
        folder = blobs.tree(found[port].address)
        assert (folder / "tokenizer.json").is_file() and (folder / "model.safetensors").is_file()
    assert found["model"].digest != ports["model"].digest


@pytest.mark.parametrize(("method", "noted"), [("group", True), ("ppo", False)])
def test_rollouts_that_teach_nothing_are_noted(
    blobs: DirBlobs, model: Artifact, method: str, noted: bool
) -> None:
    rows = [{**row, "advantage": 0.0, "reward": 0.0} for row in make_rollouts()]
    ports = {"model": model, "rollouts": blobs.put_table(rows)}
    (summary,) = blobs.rows(updated(blobs, ports, method=method)["summary"])
    note = "`advantage` is 0 in every row, so nothing was learnt from it: the rewards of a group"
    assert summary["notes"] == ([f"{note} never differed"] if noted else [])


def test_a_second_round_goes_on_from_the_first(blobs: DirBlobs, ports: Ports) -> None:
    """The reference stays the base, or moves along, as the step says."""
    first = updated(blobs, ports, beta=0.1)
    again = {**ports, "adapter": first["adapter"]}
    base = blobs.rows(updated(blobs, again, beta=0.1)["metrics"])
    start = blobs.rows(updated(blobs, again, beta=0.1, reference="start")["metrics"])
    assert base[0]["kl"] > 1e-3
    assert start[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_patterns_of_an_adapter_keep_their_order(
    blobs: DirBlobs, ports: Ports, model: Artifact, tmp_path: Path
) -> None:
    """PEFT takes the first that fits a layer, so another order would be another adapter."""
    patterns = {"self_attn.q_proj": 32, "q_proj": 8}
    folder = make_adapter(blobs.tree(model.address), tmp_path / "a", alpha_pattern=patterns)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"alpha_pattern": patterns}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapter = Artifact("tree", str(blobs.put_tree(folder)))
    found = updated(blobs, {**ports, "adapter": adapter})["adapter"]
    text = (blobs.tree(found.address) / "adapter_config.json").read_text()
    assert [*json.loads(text)["alpha_pattern"].items()] == [*patterns.items()]


def test_the_value_model_is_carried_over(blobs: DirBlobs, ports: Ports) -> None:
    """A value model that has learnt gives less to learn."""
    settings = {"method": "ppo", "num_iterations": 8, "cliprange_value": 10.0, "vf_coef": 1.0}
    first = updated(blobs, ports, **settings)
    again = updated(blobs, {**ports, "value": first["value"]}, **settings)
    losses = [blobs.rows(one["metrics"])[0]["value_loss"] for one in (first, again)]
    assert losses[1] < 0.7 * losses[0]


def test_a_whole_value_model_can_be_the_start(blobs: DirBlobs, ports: Ports) -> None:
    first = updated(blobs, ports, method="ppo", lora=None)
    again = {**ports, "model": first["model"], "value_model": first["value"]}
    assert weights(updated(blobs, again, method="ppo", lora=None)) != weights(first)
    found = updated(blobs, {**ports, "value_model": first["value"]}, method="ppo")
    origin = (blobs.tree(found["value"].address) / "flowmesh.json").read_text()
    assert first["value"].digest in origin


def test_the_reference_can_be_another_model(blobs: DirBlobs, ports: Ports, other: Artifact) -> None:
    far = updated(blobs, {**ports, "reference_model": other}, beta=0.1, learning_rate=1e-6)
    assert blobs.rows(far["metrics"])[0]["kl"] > 0.1


def test_the_parts_of_a_batch_add_up(blobs: DirBlobs, ports: Ports) -> None:
    settings = {"num_iterations": 2, "beta": 0.1, "loss_type": "grpo"}
    whole = updated(blobs, ports, per_device_train_batch_size=6, **settings)
    parts = updated(
        blobs, ports, per_device_train_batch_size=2, gradient_accumulation_steps=3, **settings
    )
    for one, two in zip(blobs.rows(whole["metrics"]), blobs.rows(parts["metrics"]), strict=True):
        for column in ("loss", "kl", "entropy", "grad_norm"):
            assert two[column] == pytest.approx(one[column], rel=1e-3, abs=1e-4)


def test_bfloat16_is_near(blobs: DirBlobs, ports: Ports) -> None:
    outcome = run_update(blobs, update_work(blobs, ports, dtype="bfloat16"))
    assert isinstance(outcome, Done) and outcome.result.numerics == "near"


def test_log_probabilities_of_generate_are_those_of_the_policy(
    blobs: DirBlobs, model: Artifact
) -> None:
    """So what `generate` wrote can stand for a pass of the starting weights."""
    decoder = Decoder(load_weights(blobs.tree(model.address), "float32"))
    requests = [
        Request((1, 40 + n, 50), 8, Sampling(temperature=1.0, key=bytes([n] * 32)), logprobs=True)
        for n in range(4)
    ]
    rows = []
    for index, answer in decoder.generate(requests):
        logprobs = {"tokens": list(answer.tokens), "logprobs": answer.logprobs}
        rows.append(
            {
                "prompt_tokens": list(requests[index].prompt),
                "completion_tokens": list(answer.tokens),
                "advantage": float(index) - 1.5,
                "logprobs": logprobs,
            }
        )
    told = updated(blobs, {"rollouts": blobs.put_table(rows), "model": model})
    for row in rows:
        del row["logprobs"]
    asked = updated(blobs, {"rollouts": blobs.put_table(rows), "model": model})
    summaries = [blobs.rows(one["summary"])[0] for one in (told, asked)]
    assert [one["old_logprobs"] for one in summaries] == ["given", "recomputed"]
    assert summaries[0]["loss"] == pytest.approx(summaries[1]["loss"], abs=1e-4)


# Interruptions


@pytest.mark.parametrize(
    "settings",
    [{"beta": 0.1}, {"method": "ppo"}, {"method": "ppo", "lora": None}],
    ids=["group", "ppo", "whole"],
)
def test_an_update_that_was_stopped_ends_in_the_same_bytes(
    blobs: DirBlobs, ports: Ports, settings: dict[str, Any]
) -> None:
    """Stopped once after each step, and, going on from there, after every later one."""
    settings = {**settings, "num_iterations": 2}
    wanted = updated(blobs, ports, **settings)
    checkpoint: Digest | None = None
    for step in (1, 2, 3):
        watcher = Watcher(stop_at=step)
        work = update_work(blobs, ports, checkpoint=checkpoint, monitor=watcher, **settings)
        with pytest.raises(Stopped):
            run_update(blobs, work)
        [(checkpoint, saved)] = watcher.checkpoints
        assert saved == step == watcher.steps[-1].step
        assert [one.step for one in watcher.steps] == [step], "steps were made twice"
        outcome = run_update(blobs, update_work(blobs, ports, checkpoint=checkpoint, **settings))
        assert isinstance(outcome, Done)
        assert weights(outcome.result.outputs) == weights(wanted)
        found, first = (
            blobs.rows(outputs["metrics"]) for outputs in (outcome.result.outputs, wanted)
        )
        timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in found]
        assert timeless == [{k: v for k, v in row.items() if k != "seconds"} for row in first]


def test_a_worker_that_is_often_lost_saves_often(blobs: DirBlobs, ports: Ports) -> None:
    """Not after the last step: the result is there by then."""
    calm, hunted = Watcher(), Watcher(interruptions_per_hour=1e12)
    for watcher in (calm, hunted):
        run_update(blobs, update_work(blobs, ports, monitor=watcher, num_iterations=2))
    assert calm.checkpoints == []
    assert [step for _, step in hunted.checkpoints] == [1, 2, 3]
    wanted = weights(updated(blobs, ports, num_iterations=2))
    for checkpoint, _ in hunted.checkpoints:
        found = updated(blobs, ports, num_iterations=2, checkpoint=checkpoint)
        assert weights(found) == wanted
    assert calm.steps[-1].steps == 4
    assert set(calm.steps[0].facts) == {"loss", "learning_rate", "tokens_per_s", "left_s"}


def test_how_often_it_saves_can_be_said(blobs: DirBlobs, ports: Ports) -> None:
    watcher, settings = Watcher(interruptions_per_hour=1e12), {"num_iterations": 3}
    settings["checkpoint_steps"] = 2
    updated(blobs, ports, monitor=watcher, **settings)
    assert [step for _, step in watcher.checkpoints] == [2, 4]
    second = Watcher(stop_at=3)
    with pytest.raises(Stopped):
        work = update_work(
            blobs, ports, checkpoint=watcher.checkpoints[0][0], monitor=second, **settings
        )
        run_update(blobs, work)
    [(checkpoint, _)] = second.checkpoints
    third = Watcher()
    found = updated(blobs, ports, checkpoint=checkpoint, monitor=third, **settings)
    assert [step for _, step in third.checkpoints] == [5]
    [summary] = blobs.rows(found["summary"])
    assert summary["resumed_from"] == [2, 3]


def test_a_full_disk_costs_one_checkpoint(
    blobs: DirBlobs, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first; the update goes on, and tells."""
    keep, watcher = blobs.put_tree, Watcher(interruptions_per_hour=1e12)

    def full(folder: Path) -> Digest:
        if watcher.steps[-1].step == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return keep(folder)

    monkeypatch.setattr(blobs, "put_tree", full)
    found = updated(blobs, ports, num_iterations=2, monitor=watcher)
    assert [step for _, step in watcher.checkpoints] == [2, 3]
    [summary] = blobs.rows(found["summary"])
    assert summary["notes"] == ["the disk was full at step 1: no checkpoint of it was kept"]


def test_the_value_model_shares_the_weights_of_the_base(blobs: DirBlobs, model: Artifact) -> None:
    source, lora = Source(blobs.tree(model.address), model.digest), Lora()
    policy = load_policy(source, lora, seed=0, half=False)
    critic = load_critic(source, lora, policy, seed=0)
    places = [
        {one.data_ptr() for one in network.model.parameters() if not one.requires_grad}
        for network in (policy, critic)
    ]
    assert len(places[1] - places[0]) <= 1, "more than the old head is its own"


def test_memory_that_runs_out_halves_the_micro_batch_once(
    blobs: DirBlobs, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"per_device_train_batch_size": 4, "num_iterations": 2}
    before, limit = Policy.logprobs, [2]

    def scarce(self: Policy, batch: Batch, temperature: float) -> Any:
        if len(batch.tokens) > limit[0]:
            raise MemoryError("can not allocate")
        return before(self, batch, temperature)

    plenty = blobs.rows(updated(blobs, ports, **settings)["metrics"])
    monkeypatch.setattr(Policy, "logprobs", scarce)
    outcome = run_update(blobs, update_work(blobs, ports, **settings))
    assert isinstance(outcome, Done) and outcome.result.numerics == "near"
    [summary] = blobs.rows(outcome.result.outputs["summary"])
    assert (summary["effective_batch"], summary["micro_batch"]) == (4, 2)
    assert "memory ran out" in summary["notes"][0]
    found = [row["loss"] for row in blobs.rows(outcome.result.outputs["metrics"])]
    assert found == pytest.approx([row["loss"] for row in plenty], abs=1e-4)
    limit[0] = 1
    outcome = run_update(blobs, update_work(blobs, ports, **settings))
    assert isinstance(outcome, Failed) and outcome.kind == "memory"


# What it refuses


def test_a_loss_that_is_no_number_ends_the_update(blobs: DirBlobs, ports: Ports) -> None:
    message = refused(blobs, ports, learning_rate=1e30, num_iterations=2)
    assert "at step 2 of 4" in message and "the learning rate 1e+30" in message


def test_no_rollouts_are_refused(blobs: DirBlobs, model: Artifact) -> None:
    table = Artifact("table", str(blobs.put(b"")), 0, ("prompt_tokens",))
    assert "the table has no rows" in refused(blobs, {"rollouts": table, "model": model})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantage": None}, "row 3: 'advantage' is None"),
        ({"completion_tokens": []}, "row 3: 'completion_tokens' is []"),
        ({"prompt_tokens": "hello"}, "row 3: 'prompt_tokens' is 'hello'"),
        ({"completion_tokens": [1, 1.5]}, "holds 1.5, which is no token id"),
        ({"completion_tokens": [5, 99_999]}, "holds the token 99999, but the model's vocabulary"),
        ({"completion_tokens": [-1]}, "holds the token -1"),
        ({"completion_tokens": [5] * CONTEXT_TOKENS}, f"context holds {CONTEXT_TOKENS}"),
        ({"logprobs": {"tokens": [], "logprobs": [-1.0]}}, "'logprobs' has 1 values"),
        ({"logprobs": "none"}, "row 3: 'logprobs' is 'none'"),
        ({"logprobs": {"logprobs": ["a"]}}, "row 3: 'logprobs' is"),
    ],
)
def test_rows_that_can_not_be_read_are_refused(
    blobs: DirBlobs, model: Artifact, change: dict[str, Any], words: str
) -> None:
    rows = make_rollouts()
    rows[2] |= change
    table = blobs.put_table(rows)
    assert words in refused(blobs, {"rollouts": table, "model": model})


def test_a_column_that_is_missing_is_refused(blobs: DirBlobs, model: Artifact) -> None:
    rows = [{k: v for k, v in row.items() if k != "reward"} for row in make_rollouts()]
    ports = {"rollouts": blobs.put_table(rows), "model": model}
    assert "no column 'reward'" in refused(blobs, ports, method="ppo")


@pytest.mark.parametrize("method", ["group", "ppo"])
def test_a_model_that_lacks_weights_is_refused(
    blobs: DirBlobs, ports: Ports, tmp_path: Path, method: str
) -> None:
    """Of a value model, the layer that scores may be missing: a new one gives zero."""
    folder = make_tiny(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    damaged = Artifact("tree", str(blobs.put_tree(folder)))
    port = {"group": "model", "ppo": "value_model"}[method]
    assert "lack model.norm.weight" in refused(blobs, {**ports, port: damaged}, method=method)


def test_adapters_that_do_not_fit_are_refused(
    blobs: DirBlobs, ports: Ports, other: Artifact
) -> None:
    found = updated(blobs, ports, method="ppo")
    strange = {**ports, "model": other, "adapter": found["adapter"]}
    assert "trained for another base model" in refused(blobs, strange)
    swapped = {**ports, "adapter": found["value"]}
    assert "trained for 'SEQ_CLS'" in refused(blobs, swapped)
    swapped = {**ports, "value": found["adapter"]}
    assert "expected is one of a reward or value model" in refused(blobs, swapped, method="ppo")


def test_lora_targets_that_do_not_exist_are_refused(blobs: DirBlobs, ports: Ports) -> None:
    message = refused(blobs, ports, lora={"target_modules": ["q_porj"]})
    assert "no module 'q_porj'; did you mean 'q_proj'?" in message


def test_a_directory_without_an_adapter_is_refused(
    blobs: DirBlobs, ports: Ports, other: Artifact
) -> None:
    assert "this is not an adapter" in refused(blobs, {**ports, "adapter": other})


def test_what_pads_a_batch_adds_nothing(blobs: DirBlobs, ports: Ports) -> None:
    """At a low temperature the padding is so unlikely that its ratio is beyond all floats."""
    found = updated(blobs, ports, temperature=0.01, beta=0.1, num_iterations=1, learning_rate=1e-9)
    metrics = blobs.rows(found["metrics"])
    assert [row["kl"] for row in metrics] == pytest.approx([0, 0], abs=1e-3)
