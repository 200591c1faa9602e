"""Kits: made from a project, changed, signed, and as they lie at a participant."""
