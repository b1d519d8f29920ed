"""`python -m ddt_accel`: the command line."""

from ddt_accel.cli.app import main

main()
