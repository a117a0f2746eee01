"""Importing models: what is copied, what is refused, and that a failure leaves nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from flowmesh.runtimes import model_import
from support.tiny_model import make_tiny

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "source")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, out: Path) -> str:
    before = sorted(out.parent.iterdir())
    assert model_import.main([*arguments, "--out", str(out)]) == 2
    assert sorted(out.parent.iterdir()) == before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_folder_is_copied_without_what_may_carry_code(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {path.name for path in source.iterdir()}
    for name in ("pytorch_model.bin", "training_args.bin", "modeling_tiny.py", ".gitattributes"):
        (source / name).write_bytes(b"x")
    (source / "onnx").mkdir()
    (source / "onnx" / "config.json").write_text("{}")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    out = tmp_path / "out"
    assert model_import.main(["--path", str(source), "--out", str(out)]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["made"], made["architecture"]) == ("copied", "LlamaForCausalLM")
    copied = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert copied == wanted | {"1_Pooling/config.json"}
    assert made["files"] == len(copied)
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o644}


def test_an_adapter_from_elsewhere_can_be_used(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a flowmesh.json nothing but names and shapes says which base it belongs to."""
    pytest.importorskip("peft")
    from flowmesh.runtimes.adapters import read_adapter
    from flowmesh.runtimes.weights import Weights
    from support.tiny_adapter import make_adapter

    out = tmp_path / "out"
    made = make_adapter(tiny, tmp_path / "lora")
    assert model_import.main(["--path", str(made), "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "LoRA adapter"
    assert read_adapter(Weights(tiny, "float32"), out, "mine", "sha256:any").updates
    (made / "adapter_model.safetensors").rename(made / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refusal(
        capsys, "--path", str(made), out=tmp_path / "other"
    )


def test_links_become_files_but_may_not_leave_the_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "weights").mkdir()
    (source / "model.safetensors").rename(source / "weights" / "a.safetensors")
    (source / "model.safetensors").symlink_to("weights/a.safetensors")
    out = tmp_path / "out"
    assert model_import.main(["--path", str(source), "--out", str(out)]) == 0
    assert not (out / "model.safetensors").is_symlink()
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (source / "secret.json").symlink_to(secret)
    capsys.readouterr()
    assert "secret.json" in refusal(capsys, "--path", str(source), out=tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, "no *.safetensors"),
        ("model.safetensors", b"no weights at all", "not a safetensors file"),
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "not JSON"),
        ("config.json", b"{}", "model_type"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "gone.safetensors"}}',
            "gone.safetensors",
        ),
    ],
)
def test_a_broken_folder_is_refused(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: str,
) -> None:
    (source / name).unlink(missing_ok=True)
    if content is not None:
        (source / name).write_bytes(content)
    assert words in refusal(capsys, "--path", str(source), out=tmp_path / "out")


def test_wrong_sources_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    known = "--revision=" + "0" * 40
    cases = [
        (["--package", "no-such-package"], "pip install no-such-package"),
        (["--package", "pytest"], "holds no model"),
        (["--path", str(tmp_path / "nowhere")], "neither a file nor a folder"),
        (["--path", str(source / "config.json")], "*.gguf"),
        (["--hub", "owner/name", "--revision", "main"], "40 hex digits"),
        (["--hub", "owner/name"], "40 hex digits"),
        (["--hub", "a/b/c", known], "a/b/c"),
    ]
    for arguments, words in cases:
        assert words in refusal(capsys, *arguments, out=out)
    out.mkdir()
    assert "exists already" in refusal(capsys, "--path", str(source), out=out)


def test_a_damaged_gguf_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF but no more than that" * 10)
    assert "can not be converted" in refusal(capsys, "--path", str(path), out=tmp_path / "out")


def test_without_network_the_hub_is_refused_in_one_line(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["--hub", "owner/name", "--revision", "0" * 40, "--out", out]
    ran = subprocess.run(
        [sys.executable, "-m", "flowmesh.runtimes.model_import", *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("model import: owner/name@000000000000 can not be fetched")
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""
