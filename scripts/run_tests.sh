#!/usr/bin/env bash
# Run the tests on up to four cores; the first run creates the environment if needed.
#   bash scripts/run_tests.sh               # all tests
#   bash scripts/run_tests.sh quick         # tests/unit only: under a minute on two cores
#   bash scripts/run_tests.sh -k losses     # other arguments go to pytest
#   bash scripts/run_tests.sh -n 0 --pdb    # in one process
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # a worker runs on each core; more threads would only wait for each other
if [ "${1:-}" = quick ]; then
    shift
    set -- tests/unit "$@"
fi
# One worker runs all tests of a file, since they share fixtures. Files start in the order that tests/conftest.py sets.
exec "$PYTHON" -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
