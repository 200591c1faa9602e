"""3D networks by name with validated arguments.

Nothing here knows tasks, sites or FLARE.
"""
