"""Distributions that NumPyro lacks, as NumPyro Distribution classes."""

from vinb.distributions.log_uniform import ImproperLogUniform
from vinb.distributions.one_hot import OneHotCategorical

__all__ = ["ImproperLogUniform", "OneHotCategorical"]
