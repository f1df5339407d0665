"""Those who are told, one kind a file."""
