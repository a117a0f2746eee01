"""The process in which a user's function runs. Started as a script; imports nothing of ours.

    parent -> child   {"source": path, "function": name, "memory_bytes": n, "parent": pid}, once,
                      then for each call {"args": {...}, "seed": text, "cpu_s": n} with
                      either "row": {...}, or "table": path and "out": path, or
                      "columns": {...}, the keywords of a reward function
    child -> parent   {"ready": true}, {"missing": [names]} or a failure, once, then for each
                      call {"rows": [...]}, {"out": path}, {"rewards": [...]} or a failure:
                      {"failed": message, "detail": traceback} or {"memory": true}

One JSON text a line. What the function prints goes elsewhere, so it can not be taken for
an answer. This limits mistakes; it is no wall against malice.
"""

import ctypes
import json
import linecache
import math
import os
import random
import resource
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

#: What tracebacks call the user's file, whose real name is a digest.
FILE = "function.py"
_OUT_OF_MEMORY = b'{"memory":true}\n'
_PR_SET_PDEATHSIG = 1
#: Characters of an exception's text, and of the end of its traceback, that are passed on.
_WORDS_LIMIT = 2_000
_DETAIL_LIMIT = 20_000
#: Characters of a wrong reward that a message shows.
_SHOWN_LIMIT = 60
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class WrongResult(Exception):
    """The function gave back what no row can be made of."""


def main() -> None:
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    setup = json.loads(requests.readline())
    _die_with(setup["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"], setup["memory_bytes"]))
    name = setup["function"]
    loaded: dict[str, Any] = {}

    def load() -> dict[str, Any]:
        module = _module(setup["source"])
        function = getattr(module, name, None)
        if not callable(function):
            return {"missing": [key for key, value in vars(module).items() if _is_own(value)]}
        loaded["function"] = function
        return {"ready": True}

    _send(answers, _guarded(load, "loading the file"))
    for line in requests:
        request = json.loads(line)
        random.seed(request["seed"])
        _limit_cpu(request["cpu_s"])
        _send(answers, _guarded(partial(_call, loaded["function"], request), f"{name}()"))


def _module(source: str) -> types.ModuleType:
    with open(source, "rb") as file:
        code = file.read()
    module = types.ModuleType("function")
    module.__file__ = FILE
    sys.modules["function"] = module  # where dataclasses and pickle look for it
    lines = code.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[FILE] = (len(code), None, lines, FILE)
    exec(compile(code, FILE, "exec"), vars(module))
    return module


def _call(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    if "row" in request:
        result = function(request["row"], **request["args"])
        if result is None:
            return {"rows": []}
        rows = [result] if isinstance(result, dict) else list(_rows(result))
        return {"rows": _encode_all(rows)}
    if "columns" in request:
        return {"rewards": _rewards(function(**request["columns"]))}
    with open(request["table"], encoding="utf-8", newline="\n") as file:
        table = [json.loads(line) for line in file]
    result = function(table, **request["args"])
    texts = _encode_all(_rows(result, "a list of dicts, the rows of the new table"))
    with open(request["out"], "w", encoding="utf-8", newline="\n") as file:
        file.writelines(text + "\n" for text in texts)
    return {"out": request["out"]}


def _rows(
    result: Any, expected: str = "a dict of new columns, a list of such dicts, or None"
) -> Iterable[Any]:
    if not isinstance(result, list | tuple | Iterator):
        raise WrongResult(f"returned {_kind(result)}; expected {expected}")
    return result


def _rewards(result: Any) -> list[float | None]:
    """Numbers of any kind as floats. Raises WrongResult for what is no list of rewards."""
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        raise WrongResult(
            f"returned {_shown(result)}; expected a list of rewards, one for each completion"
        )
    return [_reward(one, number) for number, one in enumerate(result, 1)]


def _reward(value: Any, number: int) -> float | None:
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise WrongResult(
            f"returned {_shown(value)} for completion {number}; expected a number or None"
        )
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_LIMIT else f"{text[:_SHOWN_LIMIT]}..."


def _encode_all(rows: Iterable[Any]) -> list[str]:
    """Each row as JSON. Raises WrongResult for what is no row."""
    texts = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise WrongResult(f"returned a list with {_kind(row)} at {number}; expected dicts")
        for key in row:
            if not isinstance(key, str):
                raise WrongResult(f"returned a row with the key {key!r}; columns are texts")
        for key, value in row.items():
            try:
                _encode(value).encode()
            except (TypeError, ValueError, RecursionError) as error:
                raise WrongResult(
                    f"returned what JSON can not hold in column {key!r}: {error}"
                ) from None
        texts.append(_encode(row))
    return texts


def _guarded(act: Callable[[], dict[str, Any]], what: str) -> dict[str, Any] | None:
    """The answer of `act`, or its failure; None for one of memory, where each byte counts."""
    try:
        return act()
    except MemoryError:
        return None
    except WrongResult as error:
        return {"failed": f"{what} {error}", "detail": ""}
    except BaseException as error:  # SystemExit too: it is the function's doing
        return _failure(error, what)


def _failure(error: BaseException, what: str) -> dict[str, Any]:
    """Whose fault it is and where, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != FILE:
        trace = trace.tb_next
    frames = traceback.extract_tb(trace) if trace is not None else []
    lines = [frame.lineno for frame in frames if frame.filename == FILE]
    if isinstance(error, SyntaxError) and error.filename == FILE:
        lines = [error.lineno]
    words = error.msg if isinstance(error, SyntaxError) else _words(error)
    kind = type(error).__name__
    place = f" (line {lines[-1]} of the file)" if lines else ""
    detail = "".join(traceback.format_exception(type(error), error, trace))[-_DETAIL_LIMIT:]
    return {
        "failed": f"{what} raised {kind}{': ' if words else ''}{words}{place}",
        "detail": detail,
    }


def _words(error: BaseException) -> str:
    """What an exception says, on one line and within a limit; its own code may fail too."""
    try:
        words = " ".join(str(error).split())
    except Exception as second:
        return f"(its text cannot be had: {type(second).__name__})"
    return words if len(words) <= _WORDS_LIMIT else f"{words[:_WORDS_LIMIT]}..."


def _send(answers: int, answer: dict[str, Any] | None) -> None:
    if answer is None:
        data = _OUT_OF_MEMORY
    elif "rows" in answer:
        data = ('{"rows":[' + ",".join(answer["rows"]) + "]}\n").encode()
    else:
        data = json.dumps(answer).encode() + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(answers, view) :]


def _limit_cpu(seconds: int) -> None:
    """A second line of defence: it holds where the parent can no longer kill us."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked


def _is_own(value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", "") == "function"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"


if __name__ == "__main__":
    main()
