"""What every run has: sites that are asked, state, checkpoints, record, scores, and when it ends."""
