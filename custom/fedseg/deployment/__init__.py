"""A real federation: its kits, its processes on a machine, and the session of who coordinates it."""
