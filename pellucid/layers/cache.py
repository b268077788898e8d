"""The key-value cache of plain generation: contiguous, bounded for layers with a window."""
