"""`python -m dpdmd.report`."""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.report")

import sys

from dpdmd.report.cli import main

if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
