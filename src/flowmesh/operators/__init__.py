"""Operators, declared as data: the control plane reads them, workers carry them out."""
