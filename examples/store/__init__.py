"""A sharded store: many keys, each of them can be anywhere."""
