"""A primary with standbys: one ledger, in one order, that must be there again at once."""
