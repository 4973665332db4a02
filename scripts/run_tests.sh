#!/usr/bin/env bash
# Runs the tests; makes the environment first where needed. Further arguments go to pytest:
#   bash scripts/run_tests.sh -k losses
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest "$@" # without a path: tests/, as pyproject.toml says
