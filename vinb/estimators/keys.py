"""Keys of random sites.

Design notes. Folding a name into a key is a hash of two numbers. JAX compiles it on CPUs as a loop, which nothing is fused
with: one hundredth of a training step of a small network. Written out, that time is gone. The barrier keeps XLA from writing
the hash into each of the key's uses again, which would take a tenth of a second per site to compile.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def site_key(key: jax.Array, name: str) -> jax.Array:
    """The key of the site `name`: ``jax.random.fold_in(key, crc32(name))``, bit for bit.

    Args:
        key: a single key, typed or of the old kind.
        name: the site's identity.
    """
    number = zlib.crc32(name.encode())
    impl = str(jax.random.key_impl(key))
    is_old = not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if impl != "threefry2x32" or jnp.ndim(key) != is_old:
        return jax.random.fold_in(key, number)
    data = _threefry(jnp.asarray(key) if is_old else jax.random.key_data(key), np.uint32(number))
    return data if is_old else jax.random.wrap_key_data(data, impl=impl)


@jax.jit
def _threefry(key, number):
    """Threefry-2x32 of twenty rounds, of the two numbers 0 and `number` [salmon2011parallel]."""
    words = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(_PARITY))
    x, y = words[0], number + words[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(bits)) | (y >> np.uint32(32 - bits)))
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + np.uint32(group + 1)
    return jax.lax.optimization_barrier(jnp.stack([x, y]))
