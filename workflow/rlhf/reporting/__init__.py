"""Tables, figures, provenance and live status of experiments, read from the files that the stages wrote."""
