"""`python -m server`: the same as `countersign`."""

from server.cli import main

if __name__ == "__main__":
    main(prog_name="countersign")
