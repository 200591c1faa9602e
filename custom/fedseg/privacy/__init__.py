"""What may leave a site, as plain mathematics: mechanisms, accounting, encryption. No FLARE."""
