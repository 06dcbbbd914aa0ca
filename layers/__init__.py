"""Components that are not in the 2017 paper. Most are passed to a block as an argument."""
