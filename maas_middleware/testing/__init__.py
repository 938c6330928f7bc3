"""Real parts for tests: of this package, and of apps that are composed with it."""
