"""Jinja2 in a sandbox: templates over a row's columns, and conditions over a run's facts.

The server renders what tenants wrote, so a template sees nothing but its row, and what could
fill memory from a few characters (`range`, repetition, padding) is refused or bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import (
    Environment,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateSyntaxError,
    meta,
    nodes,
    pass_environment,
)
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Longest text or list that repetition, padding or a power may make.
GROWTH_LIMIT = 1_000_000
#: Longest text that one template may give.
TEXT_LIMIT = 10_000_000
#: Turns of loops, and calls, that rendering one template may take.
STEPS_LIMIT = 200_000
#: Largest whole number that multiplication may make, in bits.
_BITS_LIMIT = 10_000

#: What Python raises for a template whose expressions are nested too deep to compile.
TOO_DEEP = (RecursionError, MemoryError, SyntaxError)

#: Longest template and longest condition, in characters.
TEMPLATE_LIMIT = 200_000
CONDITION_LIMIT = 2_000

_OTHERS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_BANNED_GLOBALS = ("range", "lipsum", "cycler", "joiner")
_BANNED_FILTERS = ("batch", "center", "format", "indent", "pprint", "random", "slice", "wordwrap")
_BANNED_METHODS = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}
)


class RenderError(ValueError):
    """A template failed on a row, or a condition on a run's facts."""


#: Steps that the template being rendered has left, in a list of one.
_LEFT: ContextVar[list[int] | None] = ContextVar("_LEFT", default=None)


def _step() -> None:
    left = _LEFT.get()
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise SecurityError(f"takes over {STEPS_LIMIT:,} steps")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """What a loop runs over; each turn is a step."""
    for item in items:
        _step()
        yield item


def _refuse_over(size: int) -> None:
    if size > TEXT_LIMIT:
        raise SecurityError(f"gave over {TEXT_LIMIT:,} characters")


def _refuse_digits(bits: int) -> None:
    if bits > _BITS_LIMIT:
        raise SecurityError("`*` makes a number of thousands of digits")


def _concatenated(parts: Iterable[str]) -> str:
    size, kept = 0, []
    for part in parts:
        size += len(part)
        _refuse_over(size)
        kept.append(part)
    return "".join(kept)


@pass_environment
def _joined(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    """Jinja2's filter `join`, within the limit."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    texts = [str(one) for one in value]
    _refuse_over(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _replaced(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Jinja2's filter `replace`, and the method, within the limit."""
    text, old, new = str(s), str(old), str(new)
    _refuse_over(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%", "+"])
    concat = staticmethod(_concatenated)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """A template in which loops are counted, and `~` joins within the limit."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        for node in [tree, *tree.find_all(nodes.Node)]:
            for field, value in node.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(node, field, _join_of(value))
                elif isinstance(value, list):
                    value[:] = [
                        _join_of(one) if isinstance(one, nodes.Concat) else one for one in value
                    ]
        return tree

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        _step()
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replaced(owner, *arguments, **named)
        if isinstance(owner, str) and name == "join":
            return _joined(self, arguments[0], owner)
        return super().call(context, called, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [side for side in (left, right) if hasattr(side, "__len__")]
        if operator == "%" and sized and isinstance(left, str | bytes):
            raise SecurityError("`%` on text is not available; use ~ to join")
        if operator == "*" and sized:
            times = right if sized[0] is left else left
            if isinstance(times, int) and len(sized[0]) * times > GROWTH_LIMIT:
                raise SecurityError(f"`*` may make at most {GROWTH_LIMIT:,} items")
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            _refuse_digits(left.bit_length() + right.bit_length())
        if operator == "+" and len(sized) == 2:
            _refuse_over(len(left) + len(right))
        if operator == "**" and (abs(left) > GROWTH_LIMIT or abs(right) > 64):
            raise SecurityError("`**` takes a base up to 1,000,000 and an exponent up to 64")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes) and attr in _BANNED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _filtered(value: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _join_of(concat: nodes.Concat) -> nodes.Filter:
    return _filtered(nodes.List(concat.nodes, lineno=concat.lineno), "join")


def _sandbox() -> _Sandbox:
    sandbox = _Sandbox(
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        cache_size=0,
        optimized=False,  # the optimizer takes cubic time on nested expressions
    )
    for name in _BANNED_GLOBALS:
        del sandbox.globals[name]
    for name in _BANNED_FILTERS:
        sandbox.filters.pop(name, None)
    sandbox.filters |= {"_counted": _counted, "join": _joined, "replace": _replaced}
    return sandbox


ENVIRONMENT = _sandbox()


def columns_named(text: str) -> frozenset[str]:
    """The columns that a template reads. Raises ValueError for one that cannot be read."""
    if len(text) > TEMPLATE_LIMIT:
        raise ValueError(f"a template of {len(text):,} characters; the limit is {TEMPLATE_LIMIT:,}")
    try:
        tree = ENVIRONMENT.parse(text)
        ENVIRONMENT.from_string(text)  # unknown filters and tests show only here
    except TemplateSyntaxError as error:
        raise ValueError(f"template line {error.lineno}: {_lower(error.message or '')}") from None
    except TemplateError as error:
        raise ValueError(f"template: {_lower(error.message or '')}") from None
    except TOO_DEEP:
        raise ValueError("template: nested too deep") from None
    if (other := next(tree.find_all(_OTHERS), None)) is not None:
        raise ValueError(f"template line {other.lineno}: a template cannot load another one")
    return frozenset(meta.find_undeclared_variables(tree)) - frozenset(ENVIRONMENT.globals)


def renderer(value: Any) -> Callable[[Mapping[str, Any]], Any]:
    """A function from a row to `value` with every text in it rendered, at any depth.

    The function raises RenderError, which names the column at fault where one is.
    """
    match value:
        case str():
            return _text(value)
        case list() | tuple():
            parts = [renderer(one) for one in value]
            return lambda row: [part(row) for part in parts]
        case dict():
            named = {key: renderer(one) for key, one in value.items()}
            return lambda row: {key: part(row) for key, part in named.items()}
        case _:
            return lambda row: value


def _text(text: str) -> Callable[[Mapping[str, Any]], str]:
    if "{" not in text:
        return lambda row: text
    template: Template = ENVIRONMENT.from_string(text)

    def render(row: Mapping[str, Any]) -> str:
        _LEFT.set([STEPS_LIMIT])
        try:
            rendered = template.render(row)
            rendered.encode()  # half a pair of surrogates can be written in a template
        except Exception as error:  # a template may call anything that its row's values offer
            raise RenderError(f"template {shortened(text)!r}: {cause(error)}") from None
        return rendered

    return render


def cause(error: Exception) -> str:
    """What went wrong, without Python's words for it where Jinja2 has better ones."""
    message = str(error)
    if message.endswith(" is undefined"):
        return f"{message.removesuffix(' is undefined')} is not in this row"
    return message or type(error).__name__


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
