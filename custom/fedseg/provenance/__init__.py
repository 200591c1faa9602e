"""What a run leaves so that others can check it later: chained records, and the audit of them."""
