"""The version, read by setup.py and CMake too."""

__version__ = "0.1.0"
