"""A script: loads what a run has made with transformers and PEFT alone, and uses it.

    python plain_loading.py BASE MADE <asked.json >told.json

BASE is the directory of the base model, MADE the one that `flowmesh outputs --to` has written.
Nothing of FlowMesh is imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

CAUSAL = transformers.AutoModelForCausalLM
SCORING = transformers.AutoModelForSequenceClassification


def write(model: Any, tokenizer: Any, question: str, max_new_tokens: int) -> str:
    asked = [{"role": "user", "content": question}]
    read = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    told = model.generate(**read, do_sample=False, max_new_tokens=max_new_tokens)
    text: str = tokenizer.decode(told[0, read["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def score(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    read = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return float(model(**read).logits[0, 0])


def main(base: str, made: Path, asked: dict[str, Any]) -> dict[str, Any]:
    plain = transformers.AutoTokenizer.from_pretrained(base)
    writers = {
        "lora": (peft.PeftModel.from_pretrained(CAUSAL.from_pretrained(base), made / "lora"), plain)
    }
    for name in ("full", "merged"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(made / name)
        writers[name] = CAUSAL.from_pretrained(made / name), tokenizer
    classifier = SCORING.from_pretrained(base, num_labels=1)
    scorers = {
        "taste": (peft.PeftModel.from_pretrained(classifier, made / "taste").eval(), plain),
        "full_taste": (
            SCORING.from_pretrained(made / "full_taste"),
            transformers.AutoTokenizer.from_pretrained(made / "full_taste"),
        ),
    }
    rows, limit = asked["rows"], asked["max_tokens"]
    return {
        "texts": {
            name: [write(model, tokenizer, row["message"], limit) for row in rows]
            for name, (model, tokenizer) in writers.items()
        },
        "scores": {
            name: [score(model, tokenizer, row["message"], row["good"]) for row in rows]
            for name, (model, tokenizer) in scorers.items()
        },
        "imported": sorted(name for name in sys.modules if name.partition(".")[0] == "flowmesh"),
    }


if __name__ == "__main__":
    json.dump(main(sys.argv[1], Path(sys.argv[2]), json.load(sys.stdin)), sys.stdout)
