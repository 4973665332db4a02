"""`python -m dpdmd.compare`."""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.compare")

import sys

from dpdmd.compare.cli import main

if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
