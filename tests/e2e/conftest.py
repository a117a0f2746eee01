"""What the end-to-end tests share: a tiny model, and prompts for it."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_model import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))


def questions(first: int, last: int) -> list[dict[str, Any]]:
    """Prompts by number; ranges that overlap ask the same things."""
    return [{"question": f"What is the answer to question {n}?"} for n in range(first, last)]
