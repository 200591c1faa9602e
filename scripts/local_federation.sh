#!/usr/bin/env bash
# A real federation on this machine: kits, a server and three sites as processes with mutual TLS, a job, its report.
# Takes the options of `fedseg local-federation`: --job, --rounds, --data, --seed, --out (runs/local_federation)...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

export FEDSEG_TEST_DATA="${FEDSEG_TEST_DATA:-../shared/data}"
exec fedseg local-federation --overwrite "$@"
