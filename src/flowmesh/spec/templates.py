"""Jinja2 in a sandbox: templates over a row's columns, and conditions over a run's facts.

The server renders what tenants wrote, so a template sees nothing but its row, and what could
fill memory from a few characters (`range`, repetition, padding) is refused or bounded.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Longest text or list that repetition, padding or a power may make.
GROWTH_LIMIT = 1_000_000
#: Longest text that one template may give.
TEXT_LIMIT = 10_000_000

#: What Python raises for a template whose expressions are nested too deep to compile.
TOO_DEEP = (RecursionError, MemoryError, SyntaxError)

#: Longest template and longest condition, in characters.
TEMPLATE_LIMIT = 200_000
CONDITION_LIMIT = 2_000

_OTHERS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_BANNED_GLOBALS = ("range", "lipsum", "cycler", "joiner")
_BANNED_FILTERS = ("center", "pprint", "random", "indent", "wordwrap", "format")
_BANNED_METHODS = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"}
)


class RenderError(ValueError):
    """A template failed on a row, or a condition on a run's facts."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [side for side in (left, right) if hasattr(side, "__len__")]
        if operator == "%" and sized and isinstance(left, str | bytes):
            raise SecurityError("`%` on text is not available; use ~ to join")
        if operator == "*" and sized:
            times = right if sized[0] is left else left
            if isinstance(times, int) and len(sized[0]) * times > GROWTH_LIMIT:
                raise SecurityError(f"`*` may make at most {GROWTH_LIMIT:,} items")
        if operator == "**" and (abs(left) > GROWTH_LIMIT or abs(right) > 64):
            raise SecurityError("`**` takes a base up to 1,000,000 and an exponent up to 64")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes) and attr in _BANNED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


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
        try:
            rendered = template.render(row)
            rendered.encode()  # half a pair of surrogates can be written in a template
        except Exception as error:  # a template may call anything that its row's values offer
            raise RenderError(f"template {shortened(text)!r}: {cause(error)}") from None
        if len(rendered) > TEXT_LIMIT:
            raise RenderError(f"template {shortened(text)!r} gave over {TEXT_LIMIT:,} characters")
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
