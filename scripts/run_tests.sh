#!/usr/bin/env bash
# Runs the tests, on up to four cores; makes the environment first where needed. Further arguments go to pytest:
#   bash scripts/run_tests.sh -k losses
#   bash scripts/run_tests.sh -n 0 --pdb    # in one process
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
# Without a path: tests/, as pyproject.toml says; in the order of tests/conftest.py.
exec "$PYTHON" -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder "$@"
