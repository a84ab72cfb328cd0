"""Services that need each other: they restart together, in the order of their needs."""
