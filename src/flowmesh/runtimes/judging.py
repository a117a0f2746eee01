"""What a judge reads, and how its verdicts become columns.

A pair is judged in both orders. What the judge has for the first place it gives to either
answer once, so it cancels out of the mean.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmesh.runtimes.choosing import choose
from flowmesh.runtimes.weights import BadPrompt, Weights
from flowmesh.spec.action import Usage
from flowmesh.spec.templates import RenderError, renderer

Row = dict[str, Any]

TIE = "tie"
_VERDICT = re.compile(r"[\s*_#>`-]*verdict[*_`]*\s*:[\s*_`\"']*(.+?)[\s*_`\"'.]*", re.IGNORECASE)
#: Most of a text that a message shows.
_SHOWN = 300
_PLACES = 6


def prompts(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the judge reads, as `Weights.prompt_tokens` takes it: a pair in both orders.

    Raises BadPrompt for a layout that can not be rendered.
    """
    return [_prompt(params, parts) for parts in _parts(params)]


def _parts(params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if params["kind"] == "rubric":
        words = [word for word, _ in params["scale"]]
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        yield {name: params[name] for name in ("question", "answer", "rubric")} | {"words": listed}
        return
    parts = {name: params[name] for name in ("question", "first", "second", "criterion", "labels")}
    yield parts
    yield parts | {"first": params["second"], "second": params["first"]}


def _prompt(params: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = renderer(params["layout"])(parts)
    except RenderError as error:
        raise BadPrompt(f"`layout`: {error}") from None
    if not params["chat"]:
        return {"prompt": text}
    turns = [{"role": "user", "content": text}]
    if params["system"] is not None:
        turns.insert(0, {"role": "system", "content": params["system"]})
    return {"messages": turns}


def weigh(weights: Weights, params: Mapping[str, Any]) -> tuple[Row, Usage]:
    """Judge by the probabilities of the verdicts; the columns, and what was read for them.

    Raises BadPrompt, BrokenModel, MemoryError.
    """
    pair = params["kind"] == "pairwise"
    words = params["labels"] if pair else [word for word, _ in params["scale"]]
    found, read, cached = [], 0, 0
    for prompt in prompts(params):
        tokens = weights.prompt_tokens(prompt)
        choice = choose(weights, tokens, words, by_length=False)
        read += len(tokens) + choice.read_tokens
        cached += choice.cached_tokens
        found.append(choice.probabilities)
    usage = Usage(prompt_tokens=read, cached_tokens=cached)
    if pair:
        # Rounded shares add up to 1 only nearly, and two equal answers must come out as equal.
        shares = [one[words[0]] / (one[words[0]] + one[words[1]]) for one in found]
        return pair_columns([shares[0], 1 - shares[1]]), usage
    return _grade(found[0], params["scale"]), usage


def _grade(probabilities: Mapping[str, float], scale: Sequence[tuple[str, float]]) -> Row:
    mass = sum(probabilities.values())
    score = sum(probabilities[word] * value for word, value in scale) / mass
    best = max(probabilities, key=lambda word: probabilities[word])
    return {
        "score": round(score, _PLACES),
        "verdict": best,
        "probabilities": dict(probabilities),
    }


def pair_columns(shares: Sequence[float]) -> Row:
    """From the probability that the first answer is better, in either order, to columns.

    The winner's `score` is for `evaluate`: 1 if the first won, 0 if the second, 1/2 for a tie.
    """
    preference = round(sum(shares) / 2, _PLACES)
    return {
        "winner": _winner(preference),
        "preference": preference,
        "consistent": _winner(shares[0]) == _winner(shares[1]),
        "score": {"first": 1.0, "second": 0.0, TIE: 0.5}[_winner(preference)],
    }


def _winner(share: float) -> str:
    return TIE if share == 0.5 else "first" if share > 0.5 else "second"


def read_written(params: Mapping[str, Any], texts: Sequence[str]) -> Row:
    """The columns of what a judge wrote, one text for each of `prompts`.

    Raises BadPrompt for a text without a verdict, unless such verdicts are to be null.
    """
    pair = params["kind"] == "pairwise"
    words = [*params["labels"], TIE] if pair else [word for word, _ in params["scale"]]
    verdicts = [read_verdict(text, words) for text in texts]
    reasoning: Any = list(texts) if pair else texts[0]
    if None in verdicts:
        if params["invalid"] == "fail":
            raise BadPrompt(_unread(texts[verdicts.index(None)], words))
        empty = ("winner", "preference", "consistent", "score", "verdict")
        return dict.fromkeys(empty) | {"reasoning": reasoning}
    if pair:
        worth = dict(zip(words, (1.0, 0.0, 0.5), strict=True))
        first, swapped = (worth[str(verdict)] for verdict in verdicts)
        return pair_columns([first, 1 - swapped]) | {"reasoning": reasoning}
    score = dict(params["scale"])[str(verdicts[0])]
    return {"score": score, "verdict": verdicts[0], "reasoning": reasoning}


def read_verdict(text: str, words: Sequence[str]) -> str | None:
    """The one of `words` that a text ends in: a last line `Verdict: WORD`, or a JSON object.

    Upper and lower case are one, and emphasis is passed over; anything else is None.
    """
    last = (text.strip().splitlines() or [""])[-1]
    said: object = None
    for candidate in (last, text):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        said = found.get("verdict") if isinstance(found, dict) else None
        break
    else:
        matched = _VERDICT.fullmatch(last)
        said = matched[1] if matched else None
    if isinstance(said, bool) or not isinstance(said, str | int):
        return None
    folded = {word.strip().casefold(): word for word in words}
    return folded.get(str(said).strip().casefold())


def _unread(text: str, words: Sequence[str]) -> str:
    shown = text.strip()
    shown = shown if len(shown) <= _SHOWN else f"...{shown[-_SHOWN:]}"
    return (
        f"the judge gave no verdict: expected a last line `Verdict: ...` with one of {words}; it "
        f"wrote {shown!r}. Raise `max_tokens`, take `method: choose`, or set `invalid: 'null'`"
    )
