"""The library: everything that makes the reference code useful and fast."""

__version__ = "0.1.0"
