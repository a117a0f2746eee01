"""Convert a GGUF file into safetensors weights in float32 and a tokenizer, byte for byte the same.

Three things that a plain load and save by transformers gets wrong are put right here:
it refuses to save what came from GGUF, it forgets how SmolLM splits digits, and numbers
that GGUF keeps in single precision come out with noise in their last places.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any

#: What transformers notes about itself and its settings on saving; it would change digests.
_PASSING_KEYS = ("transformers_version", "local_files_only", "is_local")


def convert_gguf(source: Path, out: Path) -> None:
    """Fill the folder `out` from `source`. Raises ValueError for what can not be converted."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    model = _plain_model(loaded)
    _mend_tokenizer(tokenizer, _gguf_text(source, "tokenizer.ggml.pre"))
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in (
        out / "config.json",
        out / "generation_config.json",
        out / "tokenizer_config.json",
    ):
        config = json.loads(path.read_bytes())
        kept = {key: value for key, value in config.items() if key not in _PASSING_KEYS}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _plain_model(loaded: Any) -> Any:
    """The same model without the mark that it was quantised, which forbids saving it."""
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    config = type(loaded.config)(**{key: _rounded(value) for key, value in config.items()})
    config.architectures = [type(loaded).__name__]
    model = type(loaded)(config).to(loaded.dtype)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    return model


def _rounded(value: Any) -> Any:
    """A number kept in single precision, as it was meant: 9.99999974e-06 is 1e-05."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if not isinstance(value, float):
        return value
    short = float(f"{value:.7g}")
    return short if struct.pack("<f", short) == struct.pack("<f", value) else value


def _mend_tokenizer(tokenizer: Any, scheme: str) -> None:
    if scheme != "smollm":
        return
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _gguf_text(source: Path, key: str) -> str:
    """A text of the file's header, or empty if there is none of this name."""
    from gguf import GGUFReader

    field = GGUFReader(source).get_field(key)
    return str(field.contents()) if field is not None else ""
