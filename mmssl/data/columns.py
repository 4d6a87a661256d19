"""How a table is understood: which files and columns it has, what labels and splits they hold."""
