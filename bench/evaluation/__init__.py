"""Holds FlowMesh against baselines and a bound, and writes docs/evaluation.md: `make evaluate`."""
