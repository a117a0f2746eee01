"""Machines to plan on, from a YAML file: a list of what `planning.OfferBody` has.

- {name: spot, device: A100-80, usd_per_hour: 1.10, startup_s: 90, count: 4}
- {name: mine, flops_per_s: 2.0e+12, bandwidth_bytes_per_s: 6.0e+10, usd_per_hour: 0.2}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowmesh.base.errors import Problem, SpecError
from flowmesh.base.nearest import nearest
from flowmesh.planning import OFFERS_LIMIT, OfferBody
from flowmesh.spec.document import Positions, read
from flowmesh.spec.messages import by_path, in_words

_OFFERS = TypeAdapter(list[OfferBody])


def offers_in(given: str | Path | Sequence[Mapping[str, Any]]) -> list[OfferBody]:
    """Offers of a file, or given as plain data. Raises SpecError with every problem found."""
    data, places = given, Positions("offers")
    if isinstance(given, str | Path):
        try:
            data, places = read(Path(given).read_bytes(), str(given))
        except OSError as error:
            message = f"cannot be read: {error.strerror}"
            raise SpecError(Problem(message, str(given))) from None
    if not isinstance(data, Sequence):
        message = "expected a list of machines, as `- {name: spot, device: A100-80}`"
        raise SpecError(Problem(message, places.file))
    if not 1 <= len(data) <= OFFERS_LIMIT:
        message = f"expected 1 to {OFFERS_LIMIT} offers, found {len(data)}"
        raise SpecError(Problem(message, places.file))
    try:
        offers = _OFFERS.validate_python(data)
    except ValidationError as error:
        raise SpecError(*_problems(data, error, places)) from None
    names = [offer.name for offer in offers]
    if twice := [row for row, name in enumerate(names) if name in names[:row]]:
        told = (places.problem(f"a second offer is named {names[row]!r}", row) for row in twice)
        raise SpecError(*told)
    return offers


def _problems(data: Any, error: ValidationError, places: Positions) -> list[Problem]:
    found = []
    for path, errors in by_path(data, error.errors(include_url=False)).items():
        message = in_words(errors)
        if any(one["type"] == "extra_forbidden" for one in errors):
            message = f"unknown key {path[-1]!r}{nearest(path[-1], OfferBody.model_fields)}"
        elif missing := [str(one["loc"][-1]) for one in errors if one["type"] == "missing"]:
            message = f"{missing[0]} is needed"
        found.append(places.problem(message, *path))
    return sorted(found, key=lambda problem: (problem.line, problem.column))
