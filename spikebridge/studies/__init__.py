"""Many runs: plan, tune, search, compare, contrasts, the catalog of tables."""
