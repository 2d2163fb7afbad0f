"""Batches, augmentation and splits: what training reads. A change here changes numbers."""
