"""Everything that speaks Envoy: rendering of its files as pure functions, writing them, its statistics, its process."""
