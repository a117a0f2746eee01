"""A process that dies with its parent."""

import ctypes
import os
import signal
import sys

#: Tells processes who has started them.
LAUNCHER_VARIABLE = "FLOWMESH_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill us once our parent, process `parent`, is gone.

    Elsewhere than on Linux, the end of the channel to it has to do.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked
