"""Ringfence: sandboxes for coding agents whose only way out is policy."""

__version__ = "0.1.0"
