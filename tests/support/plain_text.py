"""Run by itself: greedy text and logits of models, by transformers and peft alone.

    python plain_text.py OUT BASE ADAPTER MERGED...

Writes `logits_0.npy`, ... and `texts.json` into OUT: of the base with the adapter, then of
each merged model. Nothing of FlowMesh is imported.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["What is the name of the mountain?", "Explain why bread rises.", "the river"]


def main(out: Path, base: str, adapter: str, merged: list[str]) -> None:
    torch.set_num_threads(1)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    models = [peft.PeftModel.from_pretrained(plain, adapter).eval()]
    models += [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in merged]
    texts = []
    for number, (model, place) in enumerate(zip(models, [base, *merged], strict=True)):
        texts.append(said(model, place))
        tokens = AutoTokenizer.from_pretrained(place)(PROMPTS[0], return_tensors="pt")
        with torch.no_grad():
            np.save(out / f"logits_{number}.npy", model(**tokens).logits.numpy())
    (out / "texts.json").write_text(json.dumps(texts))


def said(model: Any, place: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(place)
    found = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")
        answer = model.generate(**tokens, max_new_tokens=12, do_sample=False)
        found.append(tokenizer.decode(answer[0]))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
