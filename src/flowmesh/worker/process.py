"""What Linux knows about the processes of a worker."""

from pathlib import Path


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
