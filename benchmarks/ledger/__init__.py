"""What the ledgers cost, beside plain `limits` and redis-py's own PING, in one run."""
