"""What the gateway costs, beside other proxies in front of the same upstream, in one run."""
