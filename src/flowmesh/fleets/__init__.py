"""Where machines come from: providers, each behind the one protocol of `base.py`."""
