"""The lines of metrics.jsonl, one a step or an evaluation: who writes (`run_log`), resumes and reports reads them here.

Imports nothing heavy, so that a report needs no torch.
"""

import json
from pathlib import Path
from typing import Any

EVAL_TURN = "eval"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of the file, in its order; a line that a kill cut short is passed over.

    Raises:
        OSError: it cannot be read.
    """
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["turn"] and isinstance(record["step"], int):
                found.append(record)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found
