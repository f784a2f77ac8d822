"""Pages that people look at: a run read into one model, and drawn as one HTML file."""
