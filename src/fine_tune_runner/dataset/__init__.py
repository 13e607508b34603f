"""A client's files: read, checked, fingerprinted, rendered. Knows no track and trains nothing."""
