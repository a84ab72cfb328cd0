"""The tests, one folder for each room; a regular package, so that no `tests` of somebody else's can stand in its place."""
