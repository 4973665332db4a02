# Finds or makes the Python that the scripts use: source scripts/setup_env.sh
#
# Sets ROOT (the checkout) and exports PYTHON. Taken as it is: $PYTHON, or python3 or python of the active
# environment, if it has all that setup.py asks for (the tests' extra too where SETUP_EXTRA=test). Otherwise .venv in
# the checkout, made on the first run and brought up to date when setup.py changes. pip's default torch is the CUDA
# build; it is large, and it works on a machine without a GPU too.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Prints the interpreter's full path if it has everything, else fails with what it lacks.
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
    sys.exit("lacks the packages of setup.py")

literals = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse(open(sys.argv[1], encoding="utf-8").read()).body
    if isinstance(node, ast.Assign) and node.targets[0].id in ("REQUIRES", "EXTRAS")
}
lacking = []
for requirement in map(Requirement, literals["REQUIRES"] + literals["EXTRAS"].get(sys.argv[2], [])):
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        lacking.append(requirement.name)
        continue
    if not requirement.specifier.contains(version, prereleases=True):
        lacking.append(f"{requirement} (it has {version})")
if lacking:
    sys.exit("lacks " + ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""))
print(sys.executable)
PY
}

# Prints the newest interpreter that can make an environment; the real one, where it is itself in an environment.
_setup_base() {
    local candidate
    for candidate in python3.13 python3.12 python3.11 python3 python; do
        "$candidate" -c '
import sys
if sys.version_info < (3, 11): sys.exit(1)
import ensurepip, venv
print(getattr(sys, "_base_executable", None) or sys.executable)' 2>/dev/null && return
    done
    echo "setup: no Python 3.11 or newer that has venv was found; install one (on Debian and Ubuntu python3-venv" \
        "too), or activate an environment that has the packages of setup.py" >&2
    return 1
}

_setup_venv() { # why the active Python is not taken
    local venv="$ROOT/.venv" stamp="$ROOT/.venv/dpdmd.stamp" log="$ROOT/.venv/dpdmd.log" wanted base
    wanted="$(cksum <"$ROOT/setup.py") $ROOT" # an environment does not survive a move of its checkout
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        return
    fi
    # Half-made by a run that was stopped, or its Python is gone: from the start, since a package may be half-written.
    # An environment without our stamp is the user's own and only gets packages added.
    if [ -e "$stamp" ] && { [ "$(cat "$stamp")" = unfinished ] || ! "$venv/bin/python" -c '' 2>/dev/null; }; then
        find "$venv" -mindepth 1 -maxdepth 1 ! -name 'dpdmd.*' -exec rm -rf {} +
    fi
    if [ ! -e "$venv/bin/python" ]; then
        base="$(_setup_base)" || return 1
        echo "setting up .venv with $base (once, some minutes, about 7 GB): $1" >&2
        echo unfinished >"$stamp"
        "$base" -m venv "$venv" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    else
        echo "bringing .venv up to date with setup.py" >&2
    fi
    # -I: what PYTHONPATH shows is not in .venv, and must not count as installed.
    if ! (cd "$ROOT" && "$venv/bin/python" -I -m pip install --no-input -e ".[test]") >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        echo "setup: pip failed (above; all of it in .venv/dpdmd.log); the next run tries again" >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}

_setup() {
    local candidates=(python3 python) candidate answer why=""
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        if answer="$(_setup_probe "$candidate" 2>&1)"; then
            # The checkout comes first, whether or not some dpdmd is installed there.
            export PYTHON="${answer##*$'\n'}" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
            return
        fi
        [ -n "$why" ] || why="$candidate ${answer##*$'\n'}"
    done
    mkdir -p "$ROOT/.venv" || return 1
    { # two first runs at once: the second waits for the first, where the system has flock
        ! command -v flock >/dev/null || flock 9 || true
        _setup_venv "${why:-no Python is active}" || return 1
    } 9>"$ROOT/.venv/dpdmd.lock"
    export PYTHON="$ROOT/.venv/bin/python"
}

_setup
