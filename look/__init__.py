"""To look inside a model: what it computes on the way, what that adds to, and pictures of it."""
