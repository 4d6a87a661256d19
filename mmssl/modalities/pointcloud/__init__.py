"""Point clouds and meshes: points in space, in no order."""
