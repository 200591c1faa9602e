"""Datalists, grids, partition into sites. Everything about files of images and nothing about training."""
