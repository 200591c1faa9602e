"""The model and the history of a run whose server sees ciphertexts only."""
