"""Models that several notebooks and benchmarks need, as NumPyro programs and Equinox modules."""

from vinb.models.air import AIR, extract, place
from vinb.models.canvases import Canvases, multi_mnist
from vinb.models.vae import VAE, Dense, TanhNetwork, constant_scale, glorot

__all__ = [
    "AIR",
    "VAE",
    "Canvases",
    "Dense",
    "TanhNetwork",
    "constant_scale",
    "extract",
    "glorot",
    "multi_mnist",
    "place",
]
