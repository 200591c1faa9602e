"""The server's loop over rounds: who is asked, how long it waits, what is kept.

How updates are combined is decided in ``aggregators``.
"""
