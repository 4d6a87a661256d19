"""How fast mmssl's training step is, beside the same work written out plainly.

    python -m benchmarks.speed [NAMES] [--threads 2] [--pairs 7] [--data FOLDER] [--write] [--again] [--table]

Each module is a work: `mae`, `videomae`, `ijepa`, `audio_mae`, `points`, `point_mae`, `graphmae`, `remasker`, `small`,
`startup`. Its reference is written here from the paper's algorithm as released code computes it, over the same timm
blocks with the same weights, batch and kind of optimizer, and its loss is compared with ours before anything is timed.
Both then take turns, A B A B, on the same threads. `--write` keeps the result in docs/results/speed/, `--table` prints
what is kept there. `graphmae` and `remasker` read real data: FOLDER holds `Cora/raw/ind.cora.*` and `uci/*.csv`
anywhere below it, and they are skipped where it does not. `jpeg_folder`, `multicrop`, `wav_folder` and `clips` are
loaders alone, on files made of what mmssl and scikit-learn ship.
"""
