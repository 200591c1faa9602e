"""What may leave a site, and in what form: FLARE filters over updates, each a thin shell around ``privacy``."""
