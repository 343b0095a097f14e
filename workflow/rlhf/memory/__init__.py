"""Memory of a stage: measurement."""
