"""For Python users: submit workflows, watch them, read what they made."""
