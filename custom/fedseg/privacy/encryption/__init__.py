"""Homomorphic encryption: of an update in ``encrypt_update``, of a model in ``encrypted_model``."""
