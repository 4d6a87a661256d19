"""Probes of frozen features: what a classifier of fixed recipe gets out of them. One file per idea.

A protocol takes what a recipe may say as keyword arguments, and is called with (train, test) of what it `needs`. It
sees the test set once, after everything has been chosen on the training set. Everything in it is deterministic.
"""

from __future__ import annotations

from mmssl.evaluation.protocols.knn import Knn
from mmssl.evaluation.protocols.linear import Fitted, Linear
from mmssl.evaluation.protocols.score import Probe, Score, averaged, check, scored, top1

__all__ = ["Fitted", "Knn", "Linear", "Probe", "Score", "averaged", "check", "scored", "top1"]
