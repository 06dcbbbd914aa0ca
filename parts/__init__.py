"""What was invented since the 2017 paper, each a part to pass in."""
