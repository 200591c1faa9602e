"""The server's side of split training: its part of the network, and how a round goes."""
