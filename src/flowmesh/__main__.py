"""`python -m flowmesh`: the command line."""

from flowmesh.cli.main import main

if __name__ == "__main__":
    main()
