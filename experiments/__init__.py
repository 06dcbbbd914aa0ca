"""One file, one finding each: a command whose result is a number, a picture and a verdict."""
