"""A site's side of a job: FLARE tasks in, updates out.

The work itself is done in ``training``.
"""
