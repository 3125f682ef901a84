"""Models whose tensors lie in pieces on several processes."""
