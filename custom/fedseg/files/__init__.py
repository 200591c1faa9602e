"""Files that are there as a whole or not at all: JSON, arrays, folders, hash chains; and digests of them.

Knows nothing of images, networks or FLARE.
"""
