"""`python -m ddt_accel`, and the command `ddt-accel`."""

import sys


def main() -> None:
    """Runs the command line; Ctrl-C is quiet even before it is there to say something."""
    try:
        from ddt_accel.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
