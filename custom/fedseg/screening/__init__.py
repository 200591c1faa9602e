"""Components of FLARE's own processes that look at a job before FLARE reads it."""
