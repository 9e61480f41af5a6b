"""`kdscale adapt`: a student learns new queries, and is taken only if it has not forgotten."""
