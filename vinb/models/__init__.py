"""NumPyro programs and Equinox modules that several notebooks need."""

from vinb.models.vae import VAE, Dense, TanhNetwork, constant_scale, glorot

__all__ = ["VAE", "Dense", "TanhNetwork", "constant_scale", "glorot"]
