"""``python -m tracebank``: makes and asks banks from a command line."""

from tracebank.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
