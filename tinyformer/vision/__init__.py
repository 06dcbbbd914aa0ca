"""Image preprocessing for vision models."""
