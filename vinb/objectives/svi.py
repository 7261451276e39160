"""Objectives as ``loss=`` of NumPyro's ``SVI``."""

from collections.abc import Callable

from numpyro.infer import ELBO

from vinb.estimators import Expectation


class SVILoss(ELBO):
    """An objective in the form that ``numpyro.infer.SVI(model, guide, optim, loss=...)`` takes: negated, of constrained parameters.

    Strategies are those of the guide's sites. Mutable state (``numpyro.contrib.module.flax_module`` and the like) is
    kept, averaged over the particles; baselines that learn have no place in ``SVI``: train those with ``vinb.training``.

    Args:
        objective: a function of ``(model, guide, **options)`` such as ``vinb.objectives.elbo``.
        options: its options.

    Raises:
        TypeError: when called, if ``objective`` does not return an expectation.
    """

    can_infer_discrete = True

    def __init__(self, objective: Callable[..., Expectation], **options):
        self.objective, self.options = objective, options
        super().__init__(num_particles=options.get("num_particles", 1))

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        bound = self.objective(model, guide, **self.options)
        if not isinstance(bound, Expectation):
            raise TypeError(
                f"objective must make an expectation of (model, guide), such as vinb.objectives.elbo; got {type(bound).__name__}"
            )
        if bound.has_state:
            raise ValueError(
                "has_state=True does not work in SVI, which has no place for the state; use vinb.training"
            )
        value, _, mutable = bound.estimate(param_map, rng_key, args, kwargs, constrained=True)
        return {"loss": -value, "mutable_state": mutable or None}
