"""The package's logger: rank 0 logs to the terminal, above progress bars, and to log.txt."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("dpdmd")


def set_up_logging(log_file: Path | None) -> None:
    """Log to the terminal and to `log_file`; without a file (other ranks), only warnings to the terminal."""
    logger.setLevel(logging.INFO if log_file else logging.WARNING)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = [_AboveBar()]
    if log_file:
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


class _AboveBar(logging.Handler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
