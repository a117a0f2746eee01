"""`render` on a worker: what the templates gave is what the row gets."""

from pathlib import Path

from flowmesh.operators.catalog import catalog
from flowmesh.runtimes.base import Done, Work
from flowmesh.runtimes.render import open_render
from flowmesh.spec.action import Action
from support.blobs import DirBlobs


def test_each_row_gets_its_texts(tmp_path: Path) -> None:
    operator = catalog()["render"]
    params = operator.params.model_validate({"template": "Hi {{ name }}", "into": "greeting"})
    batch = []
    for name in ("Ann", "Bo"):
        rendered = {"template": f"Hi {name}", "columns": None, "into": "greeting"}
        action = Action("render", 1, operator.task(params, rendered, 0), {})
        batch.append(Work(name, action))
    found = {}
    for outcome in open_render(DirBlobs(tmp_path), {}, "").run(batch):
        assert isinstance(outcome, Done)
        found[outcome.task] = outcome.result.rows
    assert found == {"Ann": [{"greeting": "Hi Ann"}], "Bo": [{"greeting": "Hi Bo"}]}
