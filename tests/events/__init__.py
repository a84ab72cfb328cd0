"""The log: its seam, its three implementations, snapshots and their stores."""
