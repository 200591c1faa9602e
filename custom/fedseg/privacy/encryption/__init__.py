"""Homomorphic encryption: of an update in ``encrypted_update``, of a model in ``encrypted_model``."""
