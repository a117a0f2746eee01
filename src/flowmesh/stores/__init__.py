"""Durable things behind small interfaces; each has one conformance suite for all its versions."""
