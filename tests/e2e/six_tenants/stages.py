"""The four stages of the six-tenant job. Each waits until the test opens its gate."""

import hashlib
import os
import time


def _stage(name, rows, gates, *more):
    while not os.path.exists(os.path.join(gates, name)):
        time.sleep(0.01)
    text = "|".join([name, *(row["value"] for row in rows), *map(str, more)])
    return [{"value": hashlib.sha256(text.encode()).hexdigest()[:12]}]


def prep(rows, gates):
    return _stage("prep", rows, gates)


def gen(rows, gates, model):
    return _stage("gen", rows, gates, model)


def score(rows, gates):
    return _stage("score", rows, gates)


def train(rows, gates, lr):
    return _stage("train", rows, gates, lr)
