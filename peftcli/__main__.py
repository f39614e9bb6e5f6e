"""`python -m peftcli` is `peft`; Ctrl-C is answered from the first import on."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from peftcli.cli.app import main as run
    except KeyboardInterrupt:
        print("stopped while loading, before anything was done", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
