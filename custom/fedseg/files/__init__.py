"""Files that are there as a whole or not at all: JSON, arrays, folders, hash chains; digests, and rules of names.

Knows nothing of images, networks or FLARE.
"""
