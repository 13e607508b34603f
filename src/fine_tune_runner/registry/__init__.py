"""Which versions exist and which one is in service: the file, its audit record, its lock."""
