"""Measurements of speed, memory and size beside other systems; bench.py is their command."""

# The number of new tokens per text when decoding is measured.
NEW_TOKENS = 64
