#!/usr/bin/env bash
# Checks before a commit: format, lint, the layers of the package and the quick tests.
#   bash scripts/check.sh          # check only
#   bash scripts/check.sh --fix    # first format and apply ruff's safe fixes
# Other arguments go to pytest.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
if [ "${1:-}" = --fix ]; then
    shift
    "$PYTHON" -m ruff check --fix-only .
    "$PYTHON" -m ruff format .
fi
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -c "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True, no_logo=True))"
exec bash scripts/run_tests.sh quick "$@"
