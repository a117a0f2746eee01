"""The same core in a made-up world, from a seed."""
