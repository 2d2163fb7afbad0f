"""Low-bit networks that run: export to one file, and inference from it without torch."""

from deploy.network import Network, load

__all__ = ["Network", "load"]
