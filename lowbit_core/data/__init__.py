"""What training reads: batches, augmentation, splits. A change here changes numbers."""
