#!/usr/bin/env bash
# Runs the tests on up to four cores; makes the environment first if needed.
#   bash scripts/run_tests.sh               # all tests
#   bash scripts/run_tests.sh quick         # tests/unit only: under a minute on two cores
#   bash scripts/run_tests.sh -k losses     # other arguments go to pytest
#   bash scripts/run_tests.sh -n 0 --pdb    # in one process
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
if [ "${1:-}" = quick ]; then
    shift
    set -- tests/unit "$@"
fi
# A worker takes a whole file, since the tests of a file share fixtures; the files stay in the order of tests/conftest.py.
exec "$PYTHON" -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
