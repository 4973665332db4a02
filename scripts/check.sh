#!/usr/bin/env bash
# What must pass before a commit: format, lint, tests (tests/test_structure.py holds the house's import order).
#   bash scripts/check.sh          checks
#   bash scripts/check.sh --fix    formats and applies ruff's safe fixes first
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
exec bash scripts/run_tests.sh "$@"
