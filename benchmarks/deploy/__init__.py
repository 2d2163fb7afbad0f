"""Exported networks and single layers against torch, onnxruntime and OpenVINO."""

from benchmarks.deploy.compare import measure
from benchmarks.deploy.peers import versions

__all__ = ["measure", "versions"]
