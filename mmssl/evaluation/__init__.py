"""How good an encoder is: features, label-free monitors, probes with intervals, honest baselines, and a health verdict.

Read `score.py` first (what `mmssl evaluate` computes), then `material.py` (what protocols need), `protocols/` and
`online.py`.
"""
