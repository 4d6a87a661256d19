"""Tables: rows of numbers and categories, with cells that may be missing; one token per column."""
