#!/usr/bin/env bash
# Three hospitals train a brain tumour network together: set-up, phantoms, FLARE's simulator, report.
set -euo pipefail
if [ $# -gt 0 ]; then
  echo "usage: bash scripts/demo.sh (takes no options)" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

data=runs/demo-data out=runs/demo
rm -rf "$data"
fedseg phantom brats --sites 3 --cases 10 --out "$data" --seed 7
echo
echo "The job's patches of 128x128x128 voxels are larger than the phantoms: set down to 48x48x48."
fedseg simulate jobs/brats_fedavg --data "$data" --out "$out" --overwrite --rounds 10 \
  --set "task.patch_size=[48,48,48]" --set training.local_epochs=6 --set training.learning_rate=0.003 \
  --set training.augmentation=intensity --set training.overlap=0.25 --compare local,threshold
