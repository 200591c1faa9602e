"""The server's side: how updates become the next global model. One rule, one file."""
