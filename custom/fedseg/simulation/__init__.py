"""A whole federation on one machine, with FLARE's simulator or in one process."""
