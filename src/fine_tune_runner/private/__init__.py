"""Track B: LoRA on own hardware. Knows nothing of Track A."""
