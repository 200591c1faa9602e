"""How what is agreed travels in FLARE's messages: updates, refusals, sizes, and the job at hand.

Executors, filters and workflows stand on it; it knows none of them.
"""
