"""Quantizers of weights and activations, written as their papers' equations."""
