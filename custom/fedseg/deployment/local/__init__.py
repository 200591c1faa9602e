"""A whole provisioned federation on this machine."""
