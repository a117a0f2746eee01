"""Other policies, each what it stands for at its best: what ours is held against."""
