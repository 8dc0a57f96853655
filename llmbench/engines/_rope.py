"""The rotations of RoPE, by position."""

import numpy as np
import numpy.typing as npt

from llmbench.weights.config import ModelConfig


def rotations(config: ModelConfig, num_positions: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.complex64]:
    """complex64 [positions, head_dim / 2]: exp(i * position * theta^(-2 j / head_dim)); of float64, complex128."""
    # frequencies and angles in float32 as Hugging Face has them: at position 4000 their rounding is seen, so it is part
    # of what the model is, also where the rest is computed in float64
    powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** powers
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    angles = angles.astype(dtype, copy=False)
    found = np.empty(angles.shape, np.result_type(dtype, np.complex64))
    found.real, found.imag = np.cos(angles), np.sin(angles)
    return found
