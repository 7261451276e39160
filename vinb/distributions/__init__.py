"""Distributions that NumPyro lacks, as NumPyro Distribution classes."""

from vinb.distributions.one_hot import OneHotCategorical

__all__ = ["OneHotCategorical"]
