"""The version that jobs are stamped with and that sites compare."""

__version__ = "0.6.0"
