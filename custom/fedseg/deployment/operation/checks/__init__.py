"""Whether a site is ready: each check is green, yellow or red, with what to do."""
