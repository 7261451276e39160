"""Verbs on NumPyro programs: ``simulate`` runs one, ``log_density`` scores values with it."""

from vinb.programs.simulate import Simulation, latent_sites, log_density, simulate, site_log_density

__all__ = ["Simulation", "latent_sites", "log_density", "simulate", "site_log_density"]
