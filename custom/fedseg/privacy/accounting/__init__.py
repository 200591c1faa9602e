"""What releases cost, composed over jobs, and the ledger in which a site keeps them."""
