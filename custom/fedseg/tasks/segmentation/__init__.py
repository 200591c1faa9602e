"""Segmentation as a kind of task: label conventions, the loss, and the scores: overlap, distances, volumes, lesions,
calibration."""
