"""The version of gpuphot."""

__version__ = "0.1.0"
