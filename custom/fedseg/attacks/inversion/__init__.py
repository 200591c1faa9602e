"""Reconstruction of images from features that crossed a cut."""
