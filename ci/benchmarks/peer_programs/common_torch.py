"""Timing steps in PyTorch: networks and cases as in `handwritten`, whose arrays come with the request."""

import time

import numpy as np
import torch
from torch.nn.functional import leaky_relu, softplus

STEP_SIZE = 1e-6


def affine(params, name, x):
    return x @ params[f"{name}_w"] + params[f"{name}_b"]


def encode(params, x):
    loc, raw = affine(params, "encoder_out", leaky_relu(affine(params, "encoder_in", x))).chunk(2, -1)
    return loc, softplus(raw)


def encode_bits(params, x):
    return affine(params, "encoder_out", leaky_relu(affine(params, "encoder_in", x)))


def decode(params, z):
    return affine(params, "decoder_out", leaky_relu(affine(params, "decoder_in", z)))


def load(request):
    """Parameters, direction and data as tensors."""
    groups = {"params": {}, "direction": {}}
    with np.load(request["arrays"]) as file:
        for name in file.files:
            if "/" in name:
                group, key = name.split("/", 1)
                groups[group][key] = torch.tensor(file[name])
        return groups["params"], groups["direction"], torch.tensor(file["data"])


def measure(name, gradient, request):
    """A row: `gradient(params, x)` gives a dict of gradients, of minus the bound."""
    params, direction, x = load(request)
    check = [
        [
            float((slopes[key] * d).sum() / (d * d).sum().clamp_min(1e-30))
            for key, d in sorted(direction.items())
        ]
        for slopes in (gradient(params, x) for _ in range(request["draws"]))
    ]
    seconds, steps = (
        [],
        max(1, request["steps"] // 10),
    )  # nothing to spread over many steps here: nothing is compiled
    for _ in range(request["rounds"]):
        current = {key: value.detach().clone() for key, value in params.items()}
        start = time.perf_counter()
        for _ in range(steps):
            slopes = gradient(current, x)
            current = {key: (value - STEP_SIZE * slopes[key]).detach() for key, value in current.items()}
        seconds.append((time.perf_counter() - start) / steps)
    return {
        "system": name,
        "seconds": float(np.median(seconds)),
        "ratio": None,
        "compile_seconds": None,
        "flops": None,
        "temp_bytes": None,
        "check": check,
    }
