"""NumPyro programs and Equinox modules that several notebooks need."""

from vinb.models.vae import VAE, Dense, TanhNetwork, glorot_uniform, normal

__all__ = ["VAE", "Dense", "TanhNetwork", "glorot_uniform", "normal"]
