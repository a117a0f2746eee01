"""Roll-outs for tests of policy optimisation, and one update on them."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from flowmesh.base.digest import Digest
from flowmesh.operators.policy import PolicyUpdateParams
from flowmesh.runtimes.base import Done, Failed, Monitor, Outcome, Unwatched, Work
from flowmesh.runtimes.policy.engine import open_policy_update
from flowmesh.spec.action import Action, Artifact
from support.blobs import DirBlobs

END_TOKEN = 2


def make_brief(folder: Path) -> Path:
    """Have a tiny model end its answers: its end token becomes likely at some places.

    As it is also the padding, its embedding was zero and so was its logit, everywhere.
    """
    weights = load_file(folder / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    rows[END_TOKEN] = 4 * rows[100]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_rollouts(count: int = 6, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with token ids of the tiny model, rewards and advantages; of unequal lengths."""
    chance = random.Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [chance.randrange(3, 400) for _ in range(chance.randint(least, most))]

    return [
        {
            "prompt_tokens": tokens(3, 7),
            "completion_tokens": [*tokens(1, 8), END_TOKEN],
            "reward": chance.gauss(0, 1),
            "advantage": chance.gauss(0, 1),
        }
        for _ in range(count)
    ]


def update_work(
    blobs: DirBlobs,
    ports: Mapping[str, Artifact],
    *,
    checkpoint: Digest | None = None,
    monitor: Monitor | None = None,
    **params: Any,
) -> Work:
    """A task of `policy_update`: two steps a round, unless the parameters say otherwise."""
    settings = {"per_device_train_batch_size": 3, "learning_rate": 1e-2, **params}
    wanted = PolicyUpdateParams.model_validate(settings)
    document = wanted.model_dump(mode="json")
    action = Action("policy_update", 1, document, dict(ports), f"trl/{wanted.dtype}")
    return Work("t", action, checkpoint, monitor or Unwatched())


def run_update(blobs: DirBlobs, work: Work) -> Outcome:
    engine = open_policy_update(blobs, work.action.inputs, work.action.engine)
    [outcome] = engine.run([work])
    return outcome


def updated(blobs: DirBlobs, ports: Mapping[str, Artifact], **more: Any) -> Mapping[str, Artifact]:
    """What an update put out."""
    outcome = run_update(blobs, update_work(blobs, ports, **more))
    assert isinstance(outcome, Done), outcome
    return outcome.result.outputs


def refused(blobs: DirBlobs, ports: Mapping[str, Artifact], **more: Any) -> str:
    """Why an update was refused."""
    outcome = run_update(blobs, update_work(blobs, ports, **more))
    assert isinstance(outcome, Failed), outcome
    assert outcome.kind == "input", outcome
    return outcome.message
