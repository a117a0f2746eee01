"""What Linux does for, and knows about, the processes of a worker."""

import ctypes
import os
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have the kernel send us `signal_number` once our parent, process `parent`, is gone.

    Elsewhere than on Linux the end of our channel has to do: it is seen between batches only.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(0)  # it died before we asked


def memory_bytes(pid: int) -> int:
    """The memory a process holds; of pages shared by n processes, an nth. 0 if it is gone.

    Children forked from one process share the libraries it imported: counted whole
    (VmRSS), a few idle children would seem to fill a machine.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    kib = (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return next(kib, 0) * 1024
