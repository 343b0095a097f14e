"""What every stage needs to run: atomic files, logging, seeds, progress and the manifest."""
