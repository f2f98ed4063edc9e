# Draws images.png by DDIM (Song et al. 2021), without the code of the training: python generate.py
import json
from pathlib import Path

import torch  # and numpy; of the release that wrote denoiser.pt2, or a later one
from PIL import Image

config = json.loads(Path(__file__).with_name("config.json").read_text("utf-8"))["config"]
T, K, settings = config["diffusion"]["timesteps"], config["model"]["num_classes"], config["sample"]
denoiser = torch.export.load(Path(__file__).with_name("denoiser.pt2")).module()
a, b = denoiser.alpha_bar.sqrt(), (1 - denoiser.alpha_bar).sqrt()  # x_t = a x_0 + b noise


def sample(x, *y, steps=settings["steps"], scale=settings["guidance"]):
    first, last = settings["guidance_interval"]
    grid = torch.linspace(T, config["diffusion"]["first_timestep"] - 1, steps + 1).round().long()
    for t, s in zip(grid, [*grid[1:-1], 0], strict=False):
        x_0 = denoiser(x, t.expand(len(x)), *y)
        if y and first * T <= t <= last * T:  # classifier-free guidance (Ho & Salimans 2022)
            x_0 = torch.lerp(denoiser(x, t.expand(len(x)), torch.full_like(y[0], K)), x_0, scale)
        x_0 = x_0.clamp(-1, 1) if settings["clip"] else x_0
        x = a[s] * x_0 + b[s] * (x - a[t] * x_0) / b[t]
    return x  # x_0 (B, C, H, W), from x_T, which is noise, and the labels y (B,) of classes


if __name__ == "__main__":
    x_T = torch.randn(20, config["model"]["image_channels"], *config["data"]["image_size"])
    x = sample(x_T, *([torch.arange(20) % K] if K else [])).clamp(-1, 1).unflatten(0, (2, 10))
    pixels = (127.5 * x + 127.5).round().byte().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray(pixels.squeeze(-1).numpy()).save("images.png")
