"""`accelerate launch`, in a process that dies with the one that started it.

python -m flowmesh.runtimes.training.launcher PARENT ARGUMENTS...
"""

import os
import signal
import sys

from accelerate.commands import launch

from flowmesh.runtimes.dying import die_with_parent
from flowmesh.runtimes.training.frames import LAUNCHER_VARIABLE


def main(parent: int, arguments: list[str]) -> None:
    die_with_parent(parent, signal.SIGKILL)
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    launch.launch_command(launch.launch_command_parser().parse_args(arguments))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
