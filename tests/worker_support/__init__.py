"""A server and operators for tests of the worker: the smallest that show what it does."""
