"""Near-duplicates by MinHash: candidates from hash tables, then each checked exactly.

The hash tables may miss a pair close to the threshold, never report a wrong one; which
they miss is fixed, because their permutations are.
"""

import unicodedata
from collections.abc import Sequence

from flowmesh.runtimes.rows import TableError

_PIECE_CHARACTERS = 5
_PERMUTATIONS = 128
_SEED = 1
#: Candidates are checked, so a false one costs time only and a missed one a duplicate.
_WEIGHTS = (0.1, 0.9)
#: Above this the library can not build its tables.
_HIGHEST_INDEXED = 0.95


def keep_distinct(texts: Sequence[str], *, threshold: float) -> list[int]:
    """Which texts to keep: each that is not `threshold`-similar to one kept before it.

    Raises TableError if the worker lacks the library.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise TableError(
            "`threshold` needs the library datasketch on the worker:"
            " install flowmesh[dedupe] there, or leave `threshold` out for exact duplicates"
        ) from None
    near = min(threshold, _HIGHEST_INDEXED)
    index = MinHashLSH(threshold=near, num_perm=_PERMUTATIONS, weights=_WEIGHTS)
    kept: dict[int, frozenset[str]] = {}
    for number, text in enumerate(texts):
        pieces = _pieces(text)
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update_batch([piece.encode(errors="surrogatepass") for piece in sorted(pieces)])
        if any(_similarity(pieces, kept[other]) >= threshold for other in index.query(sketch)):
            continue
        index.insert(number, sketch)
        kept[number] = pieces
    return list(kept)


def _pieces(text: str) -> frozenset[str]:
    """All runs of five characters, after case, width and white space are made equal."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    last = max(1, len(plain) - _PIECE_CHARACTERS + 1)
    return frozenset(plain[start : start + _PIECE_CHARACTERS] for start in range(last))


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
