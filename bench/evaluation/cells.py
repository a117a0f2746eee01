"""One simulation of the matrix: its name, what it depends on, and its outcome as plain data."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flowmesh.sim import data

ROOT = Path(__file__).resolve().parent.parent.parent
#: An outcome is void once anything that it comes from has changed.
CODE = ("base", "core", "sim", "spec")

Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy on one scenario from one seed.

    Attributes:
        changes: to the scenario, by dotted path, as `("workload.overlap", 0.5)`.
        knobs: switches of our own policy, see `flowmesh.core.utility.Knobs`; those that start
            with `weights.` are weights of its utility.
        settings: of a baseline.
    """

    scenario: str
    policy: str
    seed: int
    changes: Setting = ()
    knobs: Setting = ()
    settings: Setting = ()

    @property
    def label(self) -> str:
        told = [f"{name}={value}" for name, value in self.changes + self.knobs + self.settings]
        return " ".join([self.scenario, self.policy, f"seed {self.seed}", *told])

    def digest(self) -> str:
        told = json.dumps([asdict(self), code_digest(), data_digest()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:24]


@cache
def code_digest() -> str:
    found = hashlib.sha256()
    for name in CODE:
        for path in sorted((ROOT / "src" / "flowmesh" / name).rglob("*")):
            if path.suffix in (".py", ".yaml"):
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


@cache
def data_digest() -> str:
    """Of the traces' names and sizes: they are not ours and do not change in place."""
    folder = data.folder()
    if folder is None:
        return ""
    told = [
        f"{path.relative_to(folder)} {path.stat().st_size}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
