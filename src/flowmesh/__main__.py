"""The `flowmesh` command, and `python -m flowmesh`."""

import sys


def main() -> None:
    """Run the command line; an interruption while it is still loading is one, too."""
    try:
        from flowmesh.cli.main import main as command_line
    except KeyboardInterrupt:
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
