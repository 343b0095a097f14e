"""What every stage needs to run: its lease, attempts, signals, logs, seeds, progress and manifest."""
