"""What a run reads and leaves: its config, its folder, a SuperLink of its own."""
