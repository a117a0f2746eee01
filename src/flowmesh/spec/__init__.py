"""What a tenant may ask for: the language, the checked graph, fingerprints."""
