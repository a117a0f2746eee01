"""Machines to plan on, from a YAML file: a list of what `planning.OfferBody` has.

- {name: spot, device: A100-80, usd_per_hour: 1.10, startup_s: 90, count: 4}
- {name: mine, flops_per_s: 2.0e+12, bandwidth_bytes_per_s: 6.0e+10, usd_per_hour: 0.2}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from flowmesh.base.errors import Problem, SpecError
from flowmesh.planning import OFFERS_LIMIT, OfferBody

_OFFERS = TypeAdapter(list[OfferBody])


def offers_in(given: str | Path | Sequence[Mapping[str, Any]]) -> list[OfferBody]:
    """Offers of a file, or given as plain data. Raises SpecError with every problem found."""
    name, data = "offers", given
    if isinstance(given, str | Path):
        name = str(given)
        try:
            data = yaml.safe_load(Path(given).read_text())
        except OSError as error:
            raise SpecError(Problem(f"cannot read it: {error.strerror}", name)) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            told = " ".join(str(error).split())
            raise SpecError(Problem(f"it is no YAML: {told}", name)) from None
    try:
        offers = _OFFERS.validate_python(data)
    except ValidationError as error:
        raise SpecError(*(_problem(name, one) for one in error.errors())) from None
    if not 1 <= len(offers) <= OFFERS_LIMIT:
        message = f"expected 1 to {OFFERS_LIMIT} offers, found {len(offers)}"
        raise SpecError(Problem(message, name))
    return offers


def _problem(name: str, error: Any) -> Problem:
    number, *field = error["loc"] or ("",)
    where = f"offer {number + 1}" if isinstance(number, int) else "the file"
    where += f", {'.'.join(map(str, field))}" if field else ""
    return Problem(f"{where}: {error['msg']}", name)
