"""What came after the 2017 paper, each a part to pass in."""
