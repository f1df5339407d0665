"""Images in conversations: from what clients send to pixels of the size that a model wants. No MLX."""
