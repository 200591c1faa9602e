"""The ledger of a swarm: one block for each round, signed by the sites that took part, and held by every site."""
