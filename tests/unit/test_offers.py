"""Files of machines to plan on: what is read, and what is told of wrong ones."""

from pathlib import Path

import pytest

from flowmesh.base.errors import SpecError
from flowmesh.sdk.offers import offers_in

GOOD = """- {name: spot, device: A100-80, usd_per_hour: 1.10, startup_s: 90, count: 4}
- {name: mine, flops_per_s: 2.0e+12, bandwidth_bytes_per_s: 6.0e+10, usd_per_hour: 0.2}
"""


def test_a_list_of_machines_is_read(tmp_path: Path) -> None:
    (tmp_path / "offers.yaml").write_text(GOOD)
    spot, mine = offers_in(tmp_path / "offers.yaml")
    assert (spot.device, spot.count, spot.startup_s) == ("A100-80", 4, 90.0)
    assert (mine.name, mine.flops_per_s) == ("mine", 2e12)
    assert offers_in([{"name": "spot", "device": "T4"}])[0].device == "T4"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 0, "expected a list of machines"),
        ("spot: 1", 0, "expected a list of machines"),
        ("[]", 0, "found 0"),
        ("- {name: a}\n- {name: b, cout: 4}", 2, "did you mean 'count'"),
        ("- {name: a}\n\n- {device: T4}", 3, "name is needed"),
        ("- {name: a, usd_per_hour: -1}", 1, "must be at least 0"),
        ("- {name: a}\n- {name: a}", 2, "a second offer is named 'a'"),
        ("- {name: [", 2, "malformed YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    (tmp_path / "offers.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        offers_in(tmp_path / "offers.yaml")
    (problem,) = caught.value.problems
    assert words in problem.message
    assert problem.line == line
