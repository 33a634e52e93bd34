"""Methods that train vectors, offsets, class heads or weights, and the one training loop."""
