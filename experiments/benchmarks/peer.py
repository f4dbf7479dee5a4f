"""The peer of the benchmarks: the same networks and the same train step as a PyTorch user writes them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _Level(nn.Module):
    """A halving, what is inside, a doubling; the input beside it."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None, place: str, rate: float) -> None:
        super().__init__()
        first, last = place == 'outermost', place == 'innermost'
        down: list[nn.Module] = [nn.Conv2d(3 if first else outer, inner, 4, 2, 1, bias=False)]
        down = down if first else [nn.LeakyReLU(0.2), *down]
        down = down if first or last else [*down, nn.BatchNorm2d(inner)]
        wide = inner * (1 if last else 2)
        up: list[nn.Module] = [nn.ReLU(), nn.ConvTranspose2d(wide, 3 if first else outer, 4, 2, 1, bias=first)]
        up = up if first else [*up, nn.BatchNorm2d(outer)]
        up = [*up, nn.Dropout(rate)] if rate else up
        self.body, self.first = nn.Sequential(*down, *([inside] if inside else []), *up), first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return y if self.first else torch.cat([x, y], 1)


def unet(width: int = 64, depth: int = 8, *, last: str = 'none', dropout: float = 0.0) -> nn.Module:
    """pix2pix's U-Net, with tanh at its end where `last` says so."""
    level = None
    for i in reversed(range(depth)):
        outer, inner = width * min(2 ** max(i - 1, 0), 8), width * min(2**i, 8)
        place = 'innermost' if i == depth - 1 else 'inner' if i else 'outermost'
        level = _Level(outer, inner, level, place, dropout if 4 <= i < depth - 1 else 0.0)
    assert level is not None
    return nn.Sequential(level, nn.Tanh()) if last == 'tanh' else level


def _gate(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, 1)
    return a * b


class _NAFBlock(nn.Module):
    """A block of NAFNet."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(c, 1e-6), nn.LayerNorm(c, 1e-6)])
        self.widen, self.depthwise = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, 1, 1, groups=2 * c)
        self.attention, self.narrow = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.gated, self.last = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.scales = nn.ParameterList([torch.ones(1, c, 1, 1), torch.ones(1, c, 1, 1)])

    def _normalise(self, x: torch.Tensor, place: int) -> torch.Tensor:
        return self.norms[place](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _gate(self.depthwise(self.widen(self._normalise(x, 0))))
        y = y * self.attention(y.mean((2, 3), keepdim=True))
        x = x + self.narrow(y) * self.scales[0]
        return x + self.last(_gate(self.gated(self._normalise(x, 1)))) * self.scales[1]


class _NAFNet(nn.Module):
    """Encoder 2, 2, 4, 8; middle 12; decoder 2, 2, 2, 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        c = [width * 2**i for i in range(5)]

        def blocks(i: int, count: int) -> nn.Module:
            return nn.Sequential(*[_NAFBlock(c[i]) for _ in range(count)])

        self.intro, self.ending = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 3, 3, 1, 1)
        self.encoder = nn.ModuleList([blocks(i, n) for i, n in enumerate((2, 2, 4, 8))])
        self.downs = nn.ModuleList([nn.Conv2d(c[i], c[i + 1], 2, 2) for i in range(4)])
        self.middle = blocks(4, 12)
        ups = [nn.Sequential(nn.Conv2d(c[i], 2 * c[i], 1, bias=False), nn.PixelShuffle(2)) for i in (4, 3, 2, 1)]
        self.ups, self.decoder = nn.ModuleList(ups), nn.ModuleList([blocks(i, 2) for i in (3, 2, 1, 0)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x, skips = self.intro(image), []
        for level, down in zip(self.encoder, self.downs, strict=True):
            x = level(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, level in zip(self.ups, self.decoder, strict=True):
            x = level(up(x) + skips.pop())
        return self.ending(x) + image


def nafnet(width: int = 32) -> nn.Module:
    """NAFNet's denoiser."""
    return _NAFNet(width)


class _ResBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, features, 3, 1, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, 1, 1, bias=False),
            nn.BatchNorm2d(features),
        )
        self.shortcut = nn.Conv2d(inputs, features, 1) if inputs != features else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.shortcut(x) + self.body(x))


class _ResNetUNet(nn.Module):
    """Four halvings, four doublings, a residual block at each level of both sides."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        c = [width * min(2**i, 8) for i in range(depth + 1)]

        def norm(features: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(features), nn.ReLU()]

        down = [nn.Sequential(nn.Conv2d(c[i], c[i + 1], 4, 2, 1, bias=False), *norm(c[i + 1])) for i in range(depth)]
        up = [nn.Sequential(nn.ConvTranspose2d(c[i + 1], c[i], 4, 2, 1, bias=False), *norm(c[i])) for i in range(depth)]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up[::-1])
        self.encoder = nn.ModuleList([_ResBlock(a, b) for a, b in zip([3, *c[1:]], c, strict=True)])
        self.decoder = nn.ModuleList([_ResBlock(2 * c[i], c[i]) for i in reversed(range(depth))])
        self.head = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.encoder[0](x)]
        for down, block in zip(self.down, self.encoder[1:], strict=True):
            skips.append(block(down(skips[-1])))
        x = skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([up(x), skips.pop()], 1))
        return torch.tanh(self.head(x))


def resnet_unet(width: int = 64, depth: int = 4) -> nn.Module:
    """The U-Net of ResNet blocks."""
    return _ResNetUNet(width, depth)


def patchgan(width: int = 64) -> nn.Module:
    """pix2pix's discriminator of 70×70 patches, on input and image."""
    layers: list[nn.Module] = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for features, stride in ((2 * width, 2), (4 * width, 2), (8 * width, 1)):
        layers += [nn.Conv2d(features // 2, features, 4, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(features), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


class _LabelGenerator(nn.Module):
    """DCGAN's generator at 32², its noise joined by an embedding of the label."""

    def __init__(self, width: int, classes: int, latent: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, latent)
        c = 4 * width
        self.first, self.norm = nn.Linear(2 * latent, 16 * c, bias=False), nn.BatchNorm2d(c)
        ups: list[nn.Module] = []
        for _ in range(2):
            ups += [nn.ConvTranspose2d(c, c // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(c // 2), nn.ReLU()]
            c //= 2
        self.ups = nn.Sequential(*ups, nn.ConvTranspose2d(c, 3, 4, 2, 1), nn.Tanh())
        self.latent = latent

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(labels), self.latent, device=labels.device)
        x = self.first(torch.cat([noise, self.embedding(labels)], 1)).view(len(labels), -1, 4, 4)
        return self.ups(functional.relu(self.norm(x)))


class _LabelDiscriminator(nn.Module):
    """DCGAN's discriminator at 32², its image joined by a plane of the label."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 32 * 32)
        layers: list[nn.Module] = [nn.Conv2d(4, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * c), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4))

    def forward(self, labels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.body(torch.cat([image, self.embedding(labels).view(-1, 1, 32, 32)], 1))


def label_generator(width: int = 64, classes: int = 10, latent: int = 100) -> nn.Module:
    """DCGAN's generator of images of 32² from labels."""
    return _LabelGenerator(width, classes, latent)


def label_discriminator(width: int = 64, classes: int = 10) -> nn.Module:
    """DCGAN's discriminator of images of 32² with labels."""
    return _LabelDiscriminator(width, classes)


class Pair(nn.Module):
    """PatchGAN's input: condition and image, one behind the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, condition: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([condition, image], 1))


# The networks of each case of the benchmark: generator and discriminator.
NETWORKS: dict[str, Callable[[], tuple[nn.Module, nn.Module | None]]] = {
    'unet': lambda: (unet(last='tanh', dropout=0.5), Pair(patchgan())),
    'resnet_unet': lambda: (resnet_unet(), Pair(patchgan())),
    'nafnet': lambda: (nafnet(), None),
    'labels': lambda: (label_generator(), label_discriminator()),
}


def count(network: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(p.numel() for p in network.parameters())


class Trainer:
    """A training in PyTorch, in the order of the reference's `optimize_parameters`.

    With a discriminator Adam on vanilla GAN + 100 · L1 (labels: the former alone), without one AdamW on minus the PSNR.
    """

    def __init__(self, name: str, *, channels_last: bool, compiled: bool, bfloat16: bool) -> None:
        """
        Args:
          name: key of NETWORKS.
          channels_last: memory format of networks and images.
          compiled: both networks through `torch.compile`.
          bfloat16: the forward passes under autocast.
        """
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.labelled, self.bfloat16 = name == 'labels', bfloat16
        g, d = NETWORKS[name]()
        self.g = g.to(self.device, memory_format=self.format)
        self.d = None if d is None else d.to(self.device, memory_format=self.format)
        self.parameters = count(self.g) + (count(self.d) if self.d is not None else 0)
        self.run_g = torch.compile(self.g) if compiled else self.g
        self.run_d = torch.compile(self.d) if compiled and self.d is not None else self.d
        if self.d is not None:
            self.g_adam = torch.optim.Adam(self.g.parameters(), 2e-4, (0.5, 0.999))
            self.d_adam = torch.optim.Adam(self.d.parameters(), 2e-4, (0.5, 0.999))
        else:
            self.g_adam = torch.optim.AdamW(self.g.parameters(), 1e-3, (0.9, 0.9), weight_decay=0.0)

    def place(self, condition: Any, target: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes NumPy's uint8 (n, h, w, c), or labels int32 (n,), to the device as the networks see them."""

        def scaled(images: Any) -> torch.Tensor:
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            return pixels.contiguous(memory_format=self.format)

        given = torch.from_numpy(condition).long().to(self.device) if self.labelled else scaled(condition)
        return given, scaled(target)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield

    def step(self, condition: Any, target: Any) -> dict[str, float]:
        """One update of both networks; returns the losses, for which it waits."""
        given, real = self.place(condition, target)
        with self._precision():
            made = self.run_g(given)
        logged = {}
        if self.d is not None and self.run_d is not None:
            self.d.requires_grad_(True)
            self.d_adam.zero_grad()
            with self._precision():
                scores = self.run_d(given, made.detach()), self.run_d(given, real)
            losses = [self._loss(s, float(i)) for i, s in enumerate(scores)]
            (0.5 * (losses[0] + losses[1])).backward()
            self.d_adam.step()
            self.d.requires_grad_(False)
            logged = {'d_generated': losses[0], 'd_real': losses[1]}
        self.g_adam.zero_grad()
        if self.run_d is not None:
            with self._precision():
                scores_of_made = self.run_d(given, made)
            total = self._loss(scores_of_made, 1.0)
            if not self.labelled:
                total = total + 100 * functional.l1_loss(made.float(), real)
        else:
            errors = functional.mse_loss(made.float(), real, reduction='none').mean((1, 2, 3))
            total = 10 * torch.log10(errors + 1e-8).mean()
        total.backward()
        self.g_adam.step()
        return {name: value.item() for name, value in (logged | {'g': total}).items()}

    def _loss(self, scores: torch.Tensor, wanted: float) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(scores.float(), torch.full_like(scores.float(), wanted))

    def peak_mib(self) -> float | None:
        """The most memory of a GPU that was allocated, in MiB; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == 'cuda' else None
