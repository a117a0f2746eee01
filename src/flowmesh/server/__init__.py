"""The control plane on a network."""
