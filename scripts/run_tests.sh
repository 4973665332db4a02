#!/usr/bin/env bash
# Runs the tests; makes the environment first where needed. Further arguments go to pytest:
#   bash scripts/run_tests.sh -k losses
set -euo pipefail

for argument in "$@"; do # before anything is looked for: --help needs neither weights nor an environment
    case $argument in -h | --help)
        sed -n '2,${/^#\( \|$\)/!q;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit ;;
    esac
done

SETUP_EXTRA=test
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest "$@" # without a path: tests/, as pyproject.toml says
