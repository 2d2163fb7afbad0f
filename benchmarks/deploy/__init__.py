"""Exported networks and single layers against torch, onnxruntime and OpenVINO."""

from benchmarks.deploy.compare import measure

__all__ = ["measure"]
