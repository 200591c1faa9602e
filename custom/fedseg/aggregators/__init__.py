"""The server's side: how updates become the next global model.

Nothing here trains; rules see updates and what sites report of them.
"""
