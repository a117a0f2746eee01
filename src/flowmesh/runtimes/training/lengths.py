"""How many tokens rows have, and what that means for them: cut, dropped, or refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jinja2

from flowmesh.runtimes.rows import Row
from flowmesh.runtimes.training.data import Rows
from flowmesh.runtimes.training.refused import Refused


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows that fit, how many of them will be cut at their end, and how many were left out."""

    rows: Rows
    truncated: int = 0
    dropped: int = 0


def fit(op: str, rows: Rows, tokenizer: Any, *, limit: int) -> Measured:
    """Count what TRL will cut to `limit` tokens, or leave out as it does for reward models.

    Raises Refused for a row of which nothing would be left to learn.
    """
    _check_template(rows, tokenizer)
    if op == "reward_model":
        kept = [
            n
            for n, row in enumerate(rows.rows)
            if all(total <= limit for _, total in _sides(row, rows, tokenizer, n))
        ]
        if not kept:
            raise Refused(f"`{rows.port}`: every row is longer than `max_length`, {limit} tokens")
        return Measured(rows.pick(kept), dropped=len(rows.rows) - len(kept))
    cut = 0
    for number, row in enumerate(rows.rows):
        sides = list(_sides(row, rows, tokenizer, number))
        for prompt, _ in sides:
            if prompt >= limit:
                raise Refused(
                    f"`{rows.port}`, row {number + 1}: the prompt has {prompt} tokens and"
                    f" `max_length` is {limit}, so nothing is left of the completion; shorten it,"
                    " or raise `max_length` up to the model's context"
                )
        cut += any(total > limit for _, total in sides)
    return Measured(rows, truncated=cut)


def fit_prompts(rows: Rows, tokenizer: Any, *, context: int, completion: int) -> Measured:
    """Refuse prompts that leave no room for a whole completion. Raises Refused."""
    _check_template(rows, tokenizer)
    for number, row in enumerate(rows.rows):
        prompt = _count(tokenizer, row["prompt"], rows, number, opens=True)
        if prompt + completion > context:
            raise Refused(
                f"`{rows.port}`, row {number + 1}: a prompt of {prompt} tokens and"
                f" `max_completion_length` {completion} exceed the model's context of {context};"
                " shorten either"
            )
    return Measured(rows)


def _check_template(rows: Rows, tokenizer: Any) -> None:
    if rows.conversational and tokenizer.chat_template is None:
        raise Refused(
            f"`{rows.port}` holds messages, and the model has no chat template to write them with;"
            " take a model that has one, or give plain texts in place of messages"
        )


def _sides(row: Row, rows: Rows, tokenizer: Any, number: int) -> Iterator[tuple[int, int]]:
    """(tokens of the prompt, tokens in all), for each text that is learnt."""
    prompt = row.get("prompt")
    opening = 0
    if prompt is not None:
        opening = _count(tokenizer, prompt, rows, number, opens=True)
    for name in rows.format.required:
        if name not in ("prompt", "label"):
            whole = row[name] if prompt is None else prompt + row[name]
            yield opening, _count(tokenizer, whole, rows, number)


def _count(tokenizer: Any, content: Any, rows: Rows, number: int, *, opens: bool = False) -> int:
    if isinstance(content, str):
        # TRL ends a plain text with the token that ends an answer.
        return len(tokenizer(content)["input_ids"]) + (not opens)
    try:
        told = tokenizer.apply_chat_template(content, add_generation_prompt=opens, return_dict=True)
    except jinja2.TemplateError as error:
        raise Refused(
            f"`{rows.port}`, row {number + 1}: the model's chat template refuses it: {error}"
        ) from error
    return len(told["input_ids"])
