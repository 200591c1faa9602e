"""Segmentation as a kind of task: label conventions, the loss, Dice and HD95."""
