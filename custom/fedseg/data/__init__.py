"""Datalists, reading of images, grids, partition into sites. All about files of images and nothing about training."""
