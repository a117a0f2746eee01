"""Policy optimisation on given roll-outs: advantages, and updates by the clipped objective."""
