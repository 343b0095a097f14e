"""Memory of a stage: traced without weights, added up with what no tensor shows, and measured."""
