#!/usr/bin/env bash
# Sets up everything and runs every check. --full adds the tests that take too long for every day.
set -euo pipefail
case "${1:-}" in
  "") marks="not full" ;;
  --full) marks="" ;;
  *) echo "usage: bash scripts/test.sh [--full]" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

export FEDSEG_TEST_DATA="${FEDSEG_TEST_DATA:-../shared/data}"
echo "== ruff" && ruff check . && ruff format --check .
echo "== mypy" && mypy
echo "== pytest" && python -m pytest -m "$marks" --durations=8
