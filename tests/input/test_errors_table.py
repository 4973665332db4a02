"""docs/errors.md is what the tests of wrong input were told: WRITE_ERRORS=1 writes it anew (its head has the command).

Runs after them, by its name.
"""

import os

from bad_input import HEAD, TABLE, TOLD


def test_the_table_of_errors_is_what_is_told():
    """Where all of them ran it is compared as a whole; where some did (-k, one file), their rows."""
    rows = {f"| {what} | {line} |".replace("\n", " ") for what, line in TOLD.items()}
    text = HEAD + "\n".join(sorted(rows)) + "\n"
    if os.environ.get("WRITE_ERRORS"):
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    written = TABLE.read_text()
    assert rows <= set(written.splitlines())
    if len(TOLD) > 0.95 * sum(line.startswith("| `") for line in written.splitlines()):
        assert written == text
