"""One process of a run in several: `python -m mmssl.run.worker FOLDER`, started by `mmssl.run.launch`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mmssl.run import launch


def main(folder: str) -> int:
    """Trains with the configuration in a folder.

    Returns:
        0, or 2 where the configuration was refused.
    """
    launch.tell(f"pid.{os.environ['RANK']}", str(os.getpid()))
    job = json.loads(Path(folder, "job.json").read_text())
    begun = Path(folder, "run")  # by processes before these, of which one was lost
    run = begun.read_text() if begun.exists() else job["run"]
    from mmssl.run.training import work

    try:
        work(job["tree"], job["command"], Path(run) if run else None)
    except ValueError as error:
        launch.tell("refused", str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
