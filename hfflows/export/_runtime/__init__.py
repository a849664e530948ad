"""Exports at work: pipelines, `generate()`, Optimum's classes, numpy alone."""
