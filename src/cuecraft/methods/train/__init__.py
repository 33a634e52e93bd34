"""Methods that train vectors or weights."""
