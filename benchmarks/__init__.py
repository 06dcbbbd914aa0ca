"""Measurements of speed, memory and size beside other systems; bench.py is their command."""

# Tokens that each text is continued by when decoding is measured.
NEW_TOKENS = 64
