"""A seeded fuzzer for every file that we read: `python -m tests.fuzz --cases 100000 --seed 1`.

A case is a small valid folder in which one file is damaged. Only two outcomes are allowed: the
folder is read, and equally to Hugging Face if its packages are installed, or one clear error.
"""
