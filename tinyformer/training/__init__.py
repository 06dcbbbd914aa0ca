"""Training: the loop and its step, AdamW, schedules, checkpoints, documents, metrics and plots."""
