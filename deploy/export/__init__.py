"""From a trained network to a file: everything here needs torch."""

from deploy.export.model import export_model

__all__ = ["export_model"]
