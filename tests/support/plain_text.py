"""Greedy text and logits of models, by transformers and peft alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["What is the name of the mountain?", "Explain why bread rises.", "the river"]


def tell(out: Path, base: str, adapter: str, merged: list[str]) -> None:
    """Write `logits_0.npy`, ... and `texts.json` into `out`.

    Of the base with the adapter, then of each merged model.
    """
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
