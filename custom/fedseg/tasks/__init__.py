"""What is segmented: channels, labels, regions and preprocessing, declared as data.

Nothing here reads an image or imports FLARE.
"""
