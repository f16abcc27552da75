"""A case is a module that prints one JSON object a line: case, subject, figure, unit."""
