"""Plant outlier channels into a copy of a model, such as large models have: what it computes stays the same.

    python -m tools.plant_outliers embedded OUT --factor 64 --channels 4

Of each norm in front of linears some gains grow by a factor, and the columns behind them shrink by it. With a power of
two nothing is rounded. Plain W8A8, whose one scale has to reach the outliers, has few numbers left for all else;
smoothing takes it back.
"""

import argparse
from pathlib import Path

import msgspec
import numpy as np

from llmbench.quantize.forward import NORM_POINTS, POINTS, prefix
from llmbench.weights.convert import Report, Target, convert
from llmbench.weights.model import of_weights
from llmbench.weights.sources import How, open_weights
from llmbench.weights.tensors import Tensor, held


def plant(spec: str, out: Path, factor: float = 64.0, num_channels: int = 4, seed: int = 0) -> Report:
    """Write the model with `num_channels` outliers in front of q, k, v and of gate, up of each layer, as float32."""
    opened = open_weights(spec, How(strict=False))
    model = of_weights(opened)
    rng = np.random.default_rng(seed)
    changed: dict[str, Tensor] = {}
    for layer in range(opened.config.num_layers):
        for point in NORM_POINTS:
            scale = np.ones(opened.config.hidden_size, np.float32)
            scale[rng.permutation(len(scale))[:num_channels]] = factor
            norm = f"{prefix(layer)}{POINTS[point].source}.weight"
            changed[norm] = held(model.tensor(norm) * scale)
            for linear in POINTS[point].linears:
                name = f"{prefix(layer)}{linear}.weight"
                changed[name] = held(model.tensor(name) / scale)
    planted = msgspec.structs.replace(opened, tensors=opened.tensors | changed)
    return convert(planted, out, Target(layout="hf", dtype="float32"), lambda done, total, name: None)


def main() -> None:
    """Parse, plant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=64.0)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plant(given.model, given.out, given.factor, given.channels, given.seed)


if __name__ == "__main__":
    main()
