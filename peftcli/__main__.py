"""`python -m peftcli` is `peft`."""

from peftcli.cli.app import main

main()
