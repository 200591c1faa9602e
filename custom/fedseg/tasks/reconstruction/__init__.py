"""Reconstruction as a kind of task: how alike an image and its reconstruction are."""
