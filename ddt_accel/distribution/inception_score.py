"""The Inception Score (arXiv 1606.03498), with torch-fidelity's splits, so that figures compare."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddt_accel.errors import ConfigError

SPLITS, SEED = 10, 2020


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """The mean over splits, and their standard deviation."""

    mean: float
    deviation: float


def inception_score(logits: Tensor, *, splits: int = SPLITS) -> InceptionScore:
    """exp E KL(p(y|x) ‖ p(y)) of logits [M, K]: how sure the classifier is of each picture, and how evenly of all.

    Pictures are shuffled and split; each split has a p(y) of its own. Raises ConfigError for fewer than a picture each.
    """
    if len(logits) < splits:
        raise ConfigError(f"{len(logits)} pictures do not make {splits} splits; give at least {splits}.")
    order = np.random.RandomState(SEED).permutation(len(logits))  # whose stream torch-fidelity shuffles with
    logs = logits[torch.from_numpy(order)].double().log_softmax(1)
    bounds = [index * len(logs) // splits for index in range(splits + 1)]
    scores = []
    for start, stop in itertools.pairwise(bounds):
        part = logs[start:stop]
        overall = part.logsumexp(0) - np.log(len(part))
        scores.append(float((part.exp() * (part - overall)).sum(1).mean().exp()))
    return InceptionScore(mean=float(np.mean(scores)), deviation=float(np.std(scores)))
