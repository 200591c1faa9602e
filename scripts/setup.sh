# Sourced by the other scripts: makes .venv with everything pinned in requirements.txt, or says what is missing.
# shellcheck shell=bash
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root" || exit 1

python="${FEDSEG_PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "Python 3.11 is missing: install it (e.g. 'apt-get install python3.11 python3.11-venv' or pyenv)," \
    "or name it in FEDSEG_PYTHON." >&2
  exit 1
fi

stamp=".venv/.requirements"
wanted="$(cat requirements.txt pyproject.toml | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up .venv (a few minutes the first time) ..."
  "$python" -m venv .venv || { echo "The venv module is missing: install python3.11-venv." >&2; exit 1; }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || {
    echo "Installing the requirements failed: see above; is a package index reachable?" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . || exit 1
  echo "$wanted" > "$stamp"
fi
export PATH="$root/.venv/bin:$PATH"
export PYTHONUTF8=1
