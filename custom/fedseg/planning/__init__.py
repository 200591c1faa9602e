"""From the merged statistics of a federation, a job to begin with, as files that a person reads and submits."""
