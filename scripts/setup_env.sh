# Find or create the Python environment that the scripts use: source scripts/setup_env.sh
#
# Sets ROOT (the checkout) and exports PYTHON. If $PYTHON, or else python3 or python of the active environment or of a
# .venv that this script did not make, has all packages that setup.py requires (with SETUP_EXTRA=test the tests'
# packages, too), it is used unchanged. Otherwise this script creates .venv in the checkout, and updates it when setup.py
# changes. pip's default torch is the CUDA build, which is large and also works on a machine without a GPU.

unset CDPATH # with it, cd prints or goes elsewhere
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Print the full path of an interpreter that has all packages; otherwise fail and print what is missing.
_setup_probe() { # interpreter
    "$1" - "$ROOT/setup.py" "${SETUP_EXTRA:-}" <<'PY'
import sys

if sys.version_info < (3, 11):
    sys.exit("is older than 3.11")
import ast
from importlib import metadata

try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("has none of the packages of setup.py")

literals = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse(open(sys.argv[1], encoding="utf-8").read()).body
    if isinstance(node, ast.Assign) and node.targets[0].id in ("REQUIRES", "EXTRAS")
}
missing = []
for requirement in map(Requirement, literals["REQUIRES"] + literals["EXTRAS"].get(sys.argv[2], [])):
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        missing.append(requirement.name)
        continue
    if not requirement.specifier.contains(version, prereleases=True):
        missing.append(f"{requirement} (it has {version})")
if missing:
    sys.exit("has no " + ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""))
print(sys.executable)
PY
}

# Print the newest interpreter that can create an environment; if it is inside one itself, the base interpreter.
_setup_base() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        "$candidate" -c '
import sys
if sys.version_info < (3, 11): sys.exit(1)
import ensurepip, venv
print(getattr(sys, "_base_executable", None) or sys.executable)' 2>/dev/null && return
    done
    echo "setup: found no Python 3.11 or newer with venv; install one (on Debian and Ubuntu also python3-venv)," \
        "or activate an environment that has the packages of setup.py" >&2
    return 1
}

_setup_venv() { # reason why the active Python is not used
    local venv="$ROOT/.venv" stamp="$ROOT/.venv/dpdmd.stamp" log="$ROOT/.venv/dpdmd.log" wanted base
    wanted="$(cksum <"$ROOT/setup.py") $ROOT" # an environment breaks when its checkout is moved
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    # If a run was stopped before the environment was complete, or its Python is gone, start again: a package may be
    # incomplete. An environment without the stamp is the user's own; packages are only added to it.
    if [ -e "$stamp" ] && { [ "$(cat "$stamp")" = unfinished ] || ! "$venv/bin/python" -c '' 2>/dev/null; }; then
        find "$venv" -mindepth 1 -maxdepth 1 ! -name 'dpdmd.*' -exec rm -rf {} +
    fi
    if [ ! -e "$venv/bin/python" ]; then
        base="$(_setup_base)" || return 1
        echo "setting up .venv with $base (once, some minutes, about 7 GB): $1" >&2
        echo unfinished >"$stamp"
        "$base" -m venv "$venv" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    else
        echo "updating .venv, since setup.py has changed" >&2
    fi
    # -I: packages on PYTHONPATH are not in .venv and must not count as installed.
    if ! (cd "$ROOT" && "$venv/bin/python" -I -m pip install --no-input -e ".[test]") >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        echo "setup: pip failed (see above; the whole log is .venv/dpdmd.log); the next run tries again" >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
    echo "set up; for the commands of the README: source .venv/bin/activate" >&2
}

_setup() {
    local candidates=(python3 python) candidate answer why=""
    if [ -n "${PYTHON:-}" ]; then
        candidates=("$PYTHON")
        if ! command -v "$PYTHON" >/dev/null; then
            echo "setup: PYTHON=$PYTHON: no such program; give the path of an interpreter, or unset PYTHON" >&2
            return 2
        fi
    elif [ -x "$ROOT/.venv/bin/python" ] && [ ! -e "$ROOT/.venv/dpdmd.stamp" ]; then
        candidates+=("$ROOT/.venv/bin/python") # the user's own, such as uv's, which may be without pip
    fi
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        if answer="$(_setup_probe "$candidate" 2>&1)"; then
            # The checkout comes before any dpdmd that is installed there.
            export PYTHON="${answer##*$'\n'}" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
            return
        fi
        [ -n "$why" ] || why="$candidate ${answer##*$'\n'}"
    done
    mkdir -p "$ROOT/.venv" || return 1
    { # of two first runs at the same time, the second waits, if the system has flock
        ! command -v flock >/dev/null || flock 9 || true
        _setup_venv "${why:-no Python is active}" || return 1
    } 9>"$ROOT/.venv/dpdmd.lock"
    export PYTHON="$ROOT/.venv/bin/python"
}

_setup
