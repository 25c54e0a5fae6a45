"""A package of its own name, so that none that is installed elsewhere takes its place."""
