"""The version of rr86, which traces name."""

__version__ = "0.1.0"
