"""Memory of a stage before it runs: what its own loss code would hold."""
