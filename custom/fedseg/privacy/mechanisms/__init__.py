"""Clipping, noise, selection and quantisation of arrays."""
