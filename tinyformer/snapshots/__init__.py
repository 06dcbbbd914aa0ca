"""Snapshots: an engine's machine code and weights on disk, so that a later process starts at once.

The second run of gpt.py with a model saves a snapshot. Later runs need neither tinygrad nor the
checkpoint: the weights are mapped into memory in the form that the kernels read.
"""
