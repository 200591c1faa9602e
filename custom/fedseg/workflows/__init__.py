"""The server's loop over rounds: the classes that a job names."""
