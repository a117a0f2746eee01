"""The control plane: pure, synchronous, single-threaded. Events in, decisions out."""
