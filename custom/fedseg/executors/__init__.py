"""A site's side of a job: FLARE tasks in, updates out."""
