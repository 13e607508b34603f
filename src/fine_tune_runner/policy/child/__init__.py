"""What a guarded run puts on the PYTHONPATH of its children; imported by nobody here."""
