"""How the FeTS challenge ranks federated runs: case by case, and by how soon a good model was there."""
