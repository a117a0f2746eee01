"""What the end-to-end tests share: a tiny model, prompts for it, and a fabric for trainings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric, fabric


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_model import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    """A server with one worker, for tests that harm neither: to start them takes seconds.

    What one test has made is there for the next: tests that count take seeds of their own.
    """
    with fabric(tmp_path_factory.mktemp("trainers") / "home", workers=1) as running:
        yield running


def questions(first: int, last: int) -> list[dict[str, Any]]:
    """Prompts by number; ranges that overlap ask the same things."""
    return [{"question": f"What is the answer to question {n}?"} for n in range(first, last)]
