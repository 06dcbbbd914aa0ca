"""Experiments: each file is a command that prints its numbers, draws a figure and checks claims."""
