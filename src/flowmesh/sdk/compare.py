"""Two cards side by side: what differs in how weights were made and in how good they are."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowmesh.cards import ModelCard

#: As in `improve[2].judge`; a matrix has names in its brackets.
_ROUND = re.compile(r"\[\d+\]")
About = Literal["weights", "parent", "data", "parameter", "training", "evaluation"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is known of either: its value on each side, None where it has none."""

    about: About
    what: str
    a: Any
    b: Any

    @property
    def is_equal(self) -> bool:
        return bool(self.a == self.b)


def compare(a: ModelCard, b: ModelCard) -> list[Line]:
    """What people ask first. Of the parameters only those that differ; the rest in full."""
    lines: list[Line] = []
    parts: tuple[tuple[About, Callable[[ModelCard], Mapping[str, Any]]], ...] = (
        ("weights", _weights),
        ("parent", _parents),
        ("data", _data),
        ("parameter", lambda card: card.params),
        ("training", lambda card: card.training),
        ("evaluation", lambda card: dict(_evaluations(card))),
    )
    for about, facts in parts:
        of_a, of_b = flat(facts(a)), flat(facts(b))
        lines += [
            Line(about, what, of_a.get(what), of_b.get(what))
            for what in dict.fromkeys([*of_a, *of_b])
        ]
    lines = [one for one in lines if (one.a, one.b) != (None, None)]
    return [one for one in lines if one.about != "parameter" or not one.is_equal]


def flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings within settings by their path: `lora.r`."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def _weights(card: ModelCard) -> dict[str, Any]:
    made = f"{card.run}:{card.step}.{card.port}" if card.run else card.source
    return {
        "kind": card.kind,
        "digest": card.digest,
        "size_bytes": card.size_bytes,
        "names": ", ".join(card.names),
        "from": made,
        "operator": card.op,
    }


def _parents(card: ModelCard) -> dict[str, Any]:
    """What its own step read; what lies further up shows by these digests already."""
    return {one.used_as: one.digest for one in card.parents if one.level == 1}


def _data(card: ModelCard) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in card.data:
        found[one.used_as] = one.digest
        found[f"{one.used_as} rows"] = one.rows if one.rows >= 0 else None
    return found


def _evaluations(card: ModelCard) -> Iterator[tuple[str, Any]]:
    """By step; the number of a loop's round is left out, so that rounds can be compared."""
    plain = Counter(_ROUND.sub("", one.step) for one in card.evaluations)
    for one in card.evaluations:
        step = _ROUND.sub("", one.step)
        if plain[step] > 1:
            step = one.step
        for name, value in one.values.items():
            yield f"{step}.{name}", value
