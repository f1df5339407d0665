"""Who answers requests: the engines here, or somebody whom a plugin brings."""
