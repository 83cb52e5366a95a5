"""Measures: of one image against another, and of counterfactuals against the truth."""
