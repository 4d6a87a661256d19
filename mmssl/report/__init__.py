"""What a run did, on one page: a self-contained HTML report, its charts, and helpers for the pictures it shows.

`html.write(run)` reads a run's directory and nothing else, so a report can be written while the run goes on, after it
failed, or on another machine. Needs numpy, and pillow for pictures; no torch.
"""
