"""Federated segmentation of clinical images on NVIDIA FLARE.

The plain side (``tasks``, ``networks``, ``data``, ``training``, ``privacy``, ``evaluation``) imports no FLARE;
``executors``, ``aggregators``, ``filters`` and ``workflows`` are FLARE components; what people call is at the top.
"""

from fedseg.version import __version__

__all__ = ["__version__"]
