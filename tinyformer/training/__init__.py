"""Training: documents, batches, the optimizer step, metrics, and plots of the loss."""
