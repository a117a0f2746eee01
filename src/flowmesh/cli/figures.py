"""Money, seconds and joules as people read them: three digits, and a unit that suits."""

from math import floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowmesh.planning import Interval


def money(usd: float) -> str:
    """As $12.34, $0.0042 or $0.0000018; nothing is free but what is."""
    if abs(usd) < 5e-10:
        return "$0"
    if abs(usd) >= 1:
        return f"{'-' if usd < 0 else ''}${abs(usd):.2f}"
    places = min(9, max(2, 1 - floor(log10(abs(usd)))))
    return f"{'-' if usd < 0 else ''}${abs(usd):.{places}f}"


def seconds(amount: float) -> str:
    """As 0.25 s, 3.2 s, 75 s, 12 min or 3.4 h."""
    if amount < 0.9995:
        return f"{amount:.2g} s" if amount else "0 s"
    if amount < 100:
        return f"{amount:.1f} s"
    if amount < 600:
        return f"{amount:.0f} s"
    return f"{amount / 60:.0f} min" if amount < 6000 else f"{amount / 3600:.1f} h"


def joules(amount: float) -> str:
    """As 320 J, 1.2 kJ or 4.5 MJ."""
    for size, unit in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount:.0f} J" if amount >= 10 or not amount else f"{amount:.1f} J"


def spread(interval: "Interval", kind: str) -> str:
    """The middle and where 8 of 10 should lie: `3.2 s (1.9 s to 5.4 s)`."""
    form = {"usd": money, "seconds": seconds, "joules": joules}[kind]
    if interval.low == interval.high:
        return form(interval.mid)
    return f"{form(interval.mid)} ({form(interval.low)} to {form(interval.high)})"
