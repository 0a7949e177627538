"""``python -m hamfast``: the command line, for launchers such as torchrun."""

from hamfast.cli import main

main()
