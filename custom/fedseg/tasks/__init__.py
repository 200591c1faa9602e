"""What is learned from images, declared as data: channels, labels, regions and preprocessing; and what a kind of task
gives training. No files, no sites.
"""
