"""Keeps one training from another in the same process: draws, shared state, and words."""

import gc
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from flowmesh.runtimes.weights import set_up_torch

#: Of libraries, about their own futures; nothing that a user could change.
_IGNORED = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
_TALKERS = ("trl", "accelerate", "peft", "datasets")


@contextmanager
def isolated() -> Iterator[None]:
    """Within it, a training finds the process as a fresh one would be, and leaves it so."""
    set_up_torch()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    draws = random.getstate(), np.random.get_state(), torch.get_rng_state()
    environment = dict(os.environ)
    _forget()
    try:
        with warnings.catch_warnings():
            for category in _IGNORED:
                warnings.simplefilter("ignore", category)
            yield
    finally:
        gc.collect()  # trainers and their callbacks hold each other, and the weights
        _forget()
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        torch.set_rng_state(draws[2])
        # Accelerate switches it off for the threads it may run.
        set_up_torch()


def _forget() -> None:
    """Accelerate keeps devices and numeric formats for the process."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    GradientState._reset_state()
