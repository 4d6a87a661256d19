"""From a recipe and overrides to objects: compose, check, build. The only place, with the command line, that knows Hydra."""
