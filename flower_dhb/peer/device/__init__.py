"""What one device runs: its settings, its app, its checkpoints, its round loop."""
