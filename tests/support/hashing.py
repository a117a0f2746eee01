"""Two processes that hash strings unlike each other: the order of a set or a hash shows."""

import os
import subprocess
import sys


def told(code: str) -> list[str]:
    """What each of two processes, which run at the same time, prints."""
    path = os.pathsep.join(filter(None, sys.path))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "77")
    ]
    texts = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return texts
