"""Training: from an action to an adapter or a model, by TRL's trainers.

In the order in which a task passes through them: `data` checks the rows, `models` loads and
adapts the weights, `trainers` says what sets the six operators apart, `settings` writes TRL's
configuration, `watch` and `checkpoints` sit in the trainer's loop, `outputs` and `curve` make
the artifacts; `job` puts them together, `attempts` and `engine` run it.

On several devices, `launch` starts the processes by `launcher` and serves them; `process` is
each of them, `frames` what they say, and `team` how they agree.
"""
