"""Homomorphic encryption of updates and of models."""
