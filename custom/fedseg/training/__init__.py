"""Training and validation on one site, as plain PyTorch and MONAI. No FLARE, no other sites."""
