"""Trained models as files: what they segment, where they come from, encrypted and opened."""
