"""Updates on disk, and sums over them in one pass."""
