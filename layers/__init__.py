"""Components published after the 2017 paper, each passed to a block as an argument."""
