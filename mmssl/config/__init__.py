"""From a recipe and overrides to objects: compose, check, build. Only here and in the command line is Hydra known."""
