"""The first lines of a result of this folder: what, when, how and on which machine."""

import datetime
import os
import sys

from dpdmd.utils.versions import versions


def result_head(title: str, threads: int | None = None) -> list[str]:
    """Return the title with the date, the command line, and the machine with the versions."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    used = ", ".join(f"{package} {version}" for package, version in versions().items())
    plural = "s" if threads != 1 else ""
    cores = f"{threads} thread{plural} of {os.cpu_count()} cores, " if threads else ""
    return [
        f"# {title} ({datetime.date.today().isoformat()})",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"CPU, {cores}{memory / 1e9:.1f} GB of memory; {used}",
        "",
    ]
