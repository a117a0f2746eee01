"""Names with tags: `support-bot@prod` is what the tag `prod` of `support-bot` stands for."""

import re

#: The tag that a name without one means.
LATEST = "latest"
NAME_RULE = "a name has letters, digits, `.`, `_` and `-`, 63 in all at most"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NAMED = re.compile(rf"({_PART})(?:@({_PART}))?")


def name_and_tag(text: str) -> tuple[str, str]:
    """`support-bot@prod` in its parts. Raises ValueError, with the rule."""
    found = _NAMED.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r:.100} is no name of a model; expected NAME or NAME@TAG, where {NAME_RULE}"
        )
    return found[1], found[2] or LATEST


def named(name: str, tag: str) -> str:
    """As people write it: the tag `latest` goes without saying."""
    return name if tag == LATEST else f"{name}@{tag}"
