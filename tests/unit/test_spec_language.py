"""References, templates and conditions: the small languages inside the document."""

from typing import Any

import pytest

from flowmesh.spec import conditions
from flowmesh.spec.references import BadReference, Reference, parse, substitute, whole
from flowmesh.spec.templates import RenderError, columns_named, renderer

VALUES = {"n": 3, "t": 0.5, "on": True, "name": "Ada"}


def lookup(reference: Reference) -> Any:
    return VALUES[reference.name]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${inputs.n}", 3),
        ("${ inputs.n }", 3),
        ("n=${inputs.n} t=${matrix.t} on=${inputs.on}", "n=3 t=0.5 on=true"),
        ("${inputs.name}${inputs.name}", "AdaAda"),
        ("$${inputs.n}", "${inputs.n}"),
        ("$$${inputs.n}", "$${inputs.n}"),
        ("$5 and {x}", "$5 and {x}"),
        (["${inputs.n}", {"k": ["${inputs.t}"]}, None], [3, {"k": [0.5]}, None]),
    ],
)
def test_references_become_values(text: Any, value: Any) -> None:
    assert substitute(text, lookup) == value


def test_a_whole_reference_is_told_from_one_within_a_text() -> None:
    assert whole("${steps.a.errors}") == Reference("steps", "a", "errors")
    assert whole("${steps.a-b}") == Reference("steps", "a-b")
    assert whole("x ${steps.a}") is whole("$${steps.a}") is whole(3) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${inputs.n", "without `}`"),
        ("${input.n}", "did you mean 'inputs'?"),
        ("${n}", "starts with 'n'; known: inputs, loop, matrix, models, steps"),
        ("${inputs}", r"expected \$\{inputs.NAME\}"),
        ("${inputs.a.b}", r"expected \$\{inputs.NAME\}"),
        ("${steps.a.b.c}", r"\$\{steps.NAME.PORT\}"),
        ("${steps.a b}", "cannot be read"),
        ("${}", "starts with ''"),
    ],
)
def test_a_bad_reference_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadReference, match=words):
        parse(text)


def test_a_template_tells_its_columns() -> None:
    text = "{{ a.b }} {% for x in c %}{{ x }}{{ loop.index }}{% endfor %}{% set d = 1 %}{{ d }}"
    assert columns_named(text) == {"a", "c"}


def test_templates_are_rendered_at_any_depth() -> None:
    render = renderer([{"role": "user", "content": "{{ q }}?\n"}, 3, "{x}"])
    assert render({"q": "why"}) == [{"role": "user", "content": "why?\n"}, 3, "{x}"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ missing }}", "'missing' is not in this row"),
        ("{{ q.x.y }}", "has no attribute 'x'"),
        ("{{ 1 / n }}", "division by zero"),
        ("{{ q * 10000000 }}", "may make at most"),
        ("{{ 9 ** 99 }}", "takes a base up to"),
        ("{{ '%0999999999d' % 3 }}", "is not available"),
        ("{{ q.__class__.__mro__ }}", "unsafe"),
        ("{{ q.ljust(1000000000) }}", "unsafe"),
        ("{{ rows.append(1) }}", "unsafe|not safely callable"),
        ("{{ range(9) }}", "'range' is not in this row"),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{% for a in q * 999 %}{% for b in q * 999 %}{% endfor %}{% endfor %}", "200,000 steps"),
        (
            "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 1 }}{% endmacro %}{{ f(60) }}",
            "takes over 200,000 steps",
        ),
        (f"{{% set a = q * 9999 %}}{'{% set a = a ~ a %}' * 40}", "gave over 10,000,000"),
        (f"{{% set a = q * 9999 %}}{'{% set a = a + a %}' * 40}", "gave over 10,000,000"),
        (
            "{% set a = q * 9999 %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
            "gave over 10,000,000",
        ),
        ("{{ (q * 9999) | replace('w', q * 9999) }}", "gave over 10,000,000"),
        ("{{ (q * 9999).replace('w', q * 9999) }}", "gave over 10,000,000"),
        ("{{ (q * 9999) | join(q * 9999) }}", "gave over 10,000,000"),
        ("{{ (q * 9999).join(q * 9999) }}", "gave over 10,000,000"),
        (f"{{% set a = 9 ** 60 %}}{'{% set a = a * a %}' * 40}", "thousands of digits"),
    ],
)
def test_a_template_that_fails_says_why(template: str, words: str) -> None:
    with pytest.raises(RenderError, match=words):
        renderer(template)({"q": "why", "n": 0, "rows": []})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for x in xs %}{{ loop.index }}/{{ loop.length }} {{ x ~ 1 ~ (x ~ 2) }};{% endfor %}",
         "1/2 a1a2;2/2 b1b2;"),
        ("{% for x in deep recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "123"),
        ("{% for x in xs if x ~ 'c' == 'ac' %}{{ x }}{% else %}none{% endfor %}", "a"),
        ("{{ xs | join(', ') }} {{ ';'.join(xs) }} {{ objects | join(attribute='k') }}",
         "a, b a;b 12"),
        ("{{ 'aab' | replace('a', 'c', 1) }} {{ 'aab'.replace('a', 'c') }}", "cab ccb"),
        ("{% macro f(x) %}<{{ x ~ x }}>{% endmacro %}{{ f('a') }}{{ 2 * 3 + 1 }}", "<aa>7"),
    ],
)  # fmt: skip
def test_what_is_within_limits_is_as_jinja_has_it(template: str, text: str) -> None:
    row = {"xs": ["a", "b"], "deep": [[1, [2]], [3]], "objects": [{"k": 1}, {"k": 2}]}
    assert columns_named(template) <= set(row)
    assert renderer(template)(row) == text


@pytest.mark.parametrize(
    "template",
    ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}"],
)
def test_a_template_is_alone(template: str) -> None:
    with pytest.raises(ValueError, match="template line 1: a template cannot load another one"):
        columns_named(template)


@pytest.mark.parametrize("depth", [90, 300, 1500])
@pytest.mark.parametrize("form", ["({})", "[{}]", "-{}", "1+{}", "a.{}", "x|upper|{}"])
def test_a_template_nested_deep_is_read_or_refused(form: str, depth: int) -> None:
    before, after = form.split("{}")
    expression = before * depth + "b" + after * depth
    for check in (
        lambda: columns_named(f"{{{{ {expression} }}}}"),
        lambda: conditions.check(expression, KNOWN),
    ):
        try:
            check()
        except ValueError as error:
            assert str(error)


def test_nesting_and_length_have_limits_that_are_named() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        columns_named("{{ " + "(" * 10_000 + " }}")
    with pytest.raises(ValueError, match="nested too deep"):
        conditions.check("-" * 1_999 + "1", KNOWN)
    with pytest.raises(ValueError, match="the limit is 200,000"):
        columns_named("x" * 200_001)
    with pytest.raises(ValueError, match="at most 2,000 characters"):
        conditions.check("1" + " " * 2_000, KNOWN)


KNOWN = conditions.Known(["n", "flag"], ["t"], ["judge", "my-step"])


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("inputs.n > 3", ()),
        ("steps.judge.count > inputs.n and not steps['my-step'].skipped", ("judge", "my-step")),
        ("matrix.t | float > 0.5 or steps.judge.count", ("judge",)),
        ("(steps.judge.count if inputs.flag else 0) in [1, 2]", ("judge",)),
    ],
)
def test_a_condition_tells_its_steps(expression: str, steps: tuple[str, ...]) -> None:
    assert conditions.check(expression, KNOWN).steps == steps


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("inputs.m", "cannot see inputs.m"),
        ("input.n", "cannot see 'input'; did you mean 'inputs'?"),
        ("matrix.x", "cannot see matrix.x; known: t"),
        ("steps.juge.count", "cannot see steps.juge; did you mean 'judge'?"),
        ("steps.judge", "expected steps.judge.count, steps.judge.skipped or steps.judge.PORT.COLU"),
        ("steps.judge.rows", "expected steps.judge.count, steps.judge.skipped or steps.judge.PORT"),
        ("inputs", "cannot see 'inputs' alone"),
        ("inputs[matrix.t]", "cannot see 'inputs' alone"),
        ("1 +", "cannot be read"),
        ("inputs.n 3", "goes on at 3"),
        ("inputs.n | foo", "No filter named 'foo'"),
        ("${inputs.n} > 1", "without"),
        ("{{ inputs.n }}", "without"),
        ("", "cannot be read"),
    ],
)
def test_a_bad_condition_is_refused(expression: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        conditions.check(expression, KNOWN)


def test_a_condition_holds_or_does_not() -> None:
    facts = {"inputs": {"n": 4}, "steps": {"judge": {"count": 0, "skipped": False}}}
    assert conditions.holds("inputs.n > 3", facts)
    assert not conditions.holds("inputs.n > 3 and steps.judge.count", facts)
    with pytest.raises(RenderError, match="'>' not supported"):
        conditions.holds('inputs.n > "x"', facts)
