"""The package's logger. Rank 0 writes to the terminal, above progress bars, and to log.txt."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("dpdmd")


def set_up_logging(log_file: Path | None, *, every_line: bool = False) -> None:
    """Log to the terminal and to `log_file`. If it is None, as on other ranks, log only warnings, to the terminal.

    Args:
        every_line: without `log_file`, log everything to the terminal.
    """
    logger.setLevel(logging.INFO if log_file or every_line else logging.WARNING)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = [_AboveBar()]
    if log_file:
        handlers.append(_LogFile(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Says once that the file cannot be written, for example to a full disk. logging would with every line."""

    has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.has_failed:
            self.has_failed = True
            reason = f"cannot be written ({error.strerror}); it will lack lines that are on the terminal"
            tqdm.write(f"{self.baseFilename}: {reason}", file=sys.stderr)


class _AboveBar(logging.Handler):
    """Writes above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
