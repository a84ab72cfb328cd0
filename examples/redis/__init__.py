"""Redis, a real external process, supervised: a primary and two replicas, with a failover policy of its own."""
