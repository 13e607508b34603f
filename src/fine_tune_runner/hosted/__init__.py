"""Track A: fine-tuning APIs in OpenAI's wire format. Knows nothing of Track B."""
