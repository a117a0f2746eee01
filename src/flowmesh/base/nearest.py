"""The nearest right name for a wrong one: every message about a name ends with it."""

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 40


def nearest(word: str, known: Iterable[str]) -> str:
    """A tail for a message: `; did you mean 'x'?`, or the list of what is known."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; known: {', '.join(names[:_LISTED])}{more}" if names else ""
