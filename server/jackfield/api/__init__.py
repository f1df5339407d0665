"""The HTTP endpoints, one noun a file. They know no MLX."""
