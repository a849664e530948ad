"""Pictures and sounds through the model's own preprocessor: what is traced and compared."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Tensors

HEIGHT, WIDTH = 150, 190
"""Of the pictures made here: no processor's size, so that each has something to do."""
RATE = 16_000


def images(loaded: Loaded, count: int) -> Any:
    """Return pictures as the model takes them.

    Returns:
        `pixel_values: float[count, channels, height, width]`, of the model's own type.

    Raises:
        UnsupportedModelError: The processor makes something else of them.
    """
    channels = _of_vision(loaded.model.config, "num_channels", 3)
    processor = loaded.image_processor()
    # Where pillow is missing, or the model sees more or fewer than three colours, the picture is
    # resized and scaled here, by the figures in the processor's own file.
    if processor is None or channels != 3:  # noqa: PLR2004
        return _by_its_figures(_pictures(count, channels), loaded).to(loaded.model.dtype)
    made = processor(images=list(_pictures(count, channels)), return_tensors="pt")
    values = made.get("pixel_values")
    if values is None or values.ndim != 4:  # noqa: PLR2004 - batch, channels, height, width
        msg = f"{type(processor).__name__} makes no batch of pictures; there is no exporter for it."
        raise UnsupportedModelError(msg)
    return values.to(loaded.model.dtype)


def sounds(loaded: Loaded, seconds: Sequence[float], names: Sequence[str] | None = None) -> Tensors:
    """Return chords of these lengths as the model takes them.

    Returns:
        `input_values: float[batch, samples]` or `input_features: float[batch, …]`, of the model's
        own type, and `attention_mask` where its extractor makes one.
    """
    import torch

    accepted = signature(loaded.model.forward).parameters if names is None else names
    extractor = loaded.feature_extractor()
    rate = getattr(extractor, "sampling_rate", RATE)
    waves = [_sound(length, rate, seed) for seed, length in enumerate(seconds)]
    if extractor is None:
        longest = max(map(len, waves))
        padded = [torch.nn.functional.pad(wave, (0, longest - len(wave))) for wave in waves]
        return {"input_values": torch.stack(padded).to(loaded.model.dtype)}
    # Some pad to a length of their own, whatever the sounds' is: those know better.
    padding = signature(extractor.__call__).parameters.get("padding")
    options = {"padding": True} if padding is not None and not padding.default else {}
    arrays = [wave.numpy() for wave in waves]
    made = extractor(arrays, sampling_rate=rate, return_tensors="pt", **options)
    found = {name: made[name] for name in accepted if name in made}
    return {
        name: value.to(loaded.model.dtype) if value.is_floating_point() else value
        for name, value in found.items()
    }


def _pictures(count: int, channels: int) -> Any:
    """Return discs before a gradient, with noise: uint8[count, height, width, channels]."""
    import numpy as np

    random = np.random.default_rng(count)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    made = np.empty((count, HEIGHT, WIDTH, channels))
    for index in range(count):
        y, x = random.uniform(0.2, 0.8, 2) * (HEIGHT, WIDTH)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < random.uniform(20, 60) ** 2
        for channel in range(channels):
            made[index, :, :, channel] = random.uniform(40, 160) + columns / WIDTH * 60 + disc * 50
    made += random.normal(0, 4, made.shape)
    return made.clip(0, 255).astype(np.uint8)


def _by_its_figures(pictures: Any, loaded: Loaded) -> Any:
    import torch

    facts = loaded.preprocessor_facts()
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    values = torch.nn.functional.interpolate(
        values, _size(loaded, facts), mode="bilinear", antialias=True
    )
    values = values * facts.get("rescale_factor", 1 / 255)
    if facts.get("do_normalize", True):
        mean, deviation = facts.get("image_mean") or 0.5, facts.get("image_std") or 0.5
        values = (values - _per_channel(mean)) / _per_channel(deviation)
    return values


def _per_channel(figures: Any) -> Any:
    import torch

    return torch.tensor(figures, dtype=torch.float32).reshape(-1, 1, 1)


def _size(loaded: Loaded, facts: dict[str, Any]) -> tuple[int, int]:
    # A model with positions for one size says which; the processor's file may only bound it.
    size = _of_vision(loaded.model.config, "image_size", None)
    if size is None:
        size = facts.get("crop_size") or facts.get("size") or 224
    if isinstance(size, dict):
        if "height" in size:
            return int(size["height"]), int(size["width"])
        size = size.get("shortest_edge") or size.get("longest_edge") or 224
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _of_vision(config: Any, name: str, default: Any) -> Any:
    for described in (getattr(config, "vision_config", None), config):
        if described is not None and getattr(described, name, None) is not None:
            return getattr(described, name)
    return default


def _sound(seconds: float, rate: int, seed: int) -> Any:
    """Return a chord that fades, with a little noise: float32[samples]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(int(seconds * rate)) / rate
    chord = sum(torch.sin(2 * torch.pi * (110.0 + 70 * seed) * step * time) for step in (1, 1.5, 2))
    noise = torch.randn(len(time), generator=generator) * 0.02
    return (chord * torch.exp(-3 * time) * 0.2 + noise).float()
