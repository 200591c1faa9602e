"""3D networks by name with validated arguments, and their weights as named arrays."""
