#!/usr/bin/env bash
# Sets up everything and runs every check. --full adds the tests that take too long for every day.
set -euo pipefail
case "${1:-}" in
  "") marks="not full" workers=3 ;;
  --full) marks="" workers=2 ;;
  *) echo "usage: bash scripts/test.sh [--full]" >&2; exit 2 ;;
esac

# Pages are looked at in a browser. Where there is none and none can be installed, those tests are skipped and say so.
browser=""
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get -qq update && apt-get -qq install --no-install-recommends -y chromium; } >/dev/null 2>&1 &
  browser=$!
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

export FEDSEG_TEST_DATA="${FEDSEG_TEST_DATA:-../shared/data}"
# One command a line: with && a failure of all but the last would not end the script.
echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
if [ -n "$browser" ]; then
  wait "$browser" || echo "chromium cannot be installed here"
fi
echo "== pytest"
# A file to each worker. Tests of whole runs wait for processes half of their time: with three workers two processors
# are busy. They come first (conftest.py). Some of the full tests measure seconds of slow sites, so those have two.
python -m pytest -m "$marks" -n "$workers" --dist loadfile --no-loadscope-reorder --durations=8
