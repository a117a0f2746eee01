"""Training: from an action to an adapter or a model, by TRL's trainers.

In the order in which a task passes through them: `data` checks the rows, `models` loads and
adapts the weights, `trainers` says what sets the six operators apart, `settings` writes TRL's
configuration, `watch` and `checkpoints` sit in the trainer's loop, `outputs` and `curve` make
the artifacts; `engine` puts them together.
"""
