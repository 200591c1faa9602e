"""Training and validation on one site, as plain PyTorch and MONAI.

Nothing here knows that other sites exist, or imports FLARE.
"""
