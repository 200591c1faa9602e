"""Components of FLARE's own processes with which jobs outlive crashes."""
