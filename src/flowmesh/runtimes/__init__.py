"""What runs on a worker. The only place that may import torch."""
