"""Example programs of two papers on static analyses of variational inference, ported to NumPyro: fourteen pairs of model and
guide of lee2023smoothness, and those of the twelve of lee2020verifiedsvi that differ from them.

Design notes. The pairs are made to be traced and analysed, so what they share with the originals is what an analysis sees: sites,
dependence, nonlinearities, distributions, plates, and parameters in the same groups, one site a layer. Data are made up, initial
values fixed. A maker takes one of two sizes: ``small`` traces within a fraction of a second, ``original`` has the papers' shapes
and is not meant to be run. Programs close over the sizes and take the data as arguments. Latents of unrolled loops are called
``z_1``, ``z_2`` and so on, which the papers count as one, ``z_{}``. Where a pair is less than the original, its maker says so.
"""

from collections.abc import Callable

from vinb.models.pairs.cells import scanvi
from vinb.models.pairs.deep import cvae, sgdef, ssvae, ssvae_supervised, ssvae_unsupervised, vae
from vinb.models.pairs.pair import SCALES, Pair, check_scale
from vinb.models.pairs.regression import br, br_edited, br_original, csis, csis_swapped, dpmm, spnor
from vinb.models.pairs.scenes import air
from vinb.models.pairs.sequences import dmm, mhmm
from vinb.models.pairs.topics import lda, lda_edited_1, lda_edited_2, lda_original, prodlda

__all__ = ["PAIRS", "SCALES", "Pair", "make_pair"]

PAIRS: dict[str, Callable[[str], Pair]] = {
    maker.__name__: maker
    for maker in (
        *(spnor, br, csis, lda, vae, sgdef, dmm, ssvae, air, dpmm, cvae, scanvi, prodlda, mhmm),
        *(br_original, br_edited, csis_swapped, lda_original, lda_edited_1, lda_edited_2),
        *(ssvae_unsupervised, ssvae_supervised),
    )
}


def make_pair(name: str, scale: str = "small") -> Pair:
    """One of ``PAIRS``, made anew.

    Args:
        name: a key of ``PAIRS``.
        scale: ``"small"`` or ``"original"``.

    Raises:
        ValueError: for a name or a scale that does not exist.
    """
    if name not in PAIRS:
        raise ValueError(f"there is no pair {name!r}; the pairs are {', '.join(PAIRS)}")
    check_scale(scale)
    return PAIRS[name](scale)
