"""A small DINOv2 under Hugging Face's module names, with a head behind it, as a saliency model is exported."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

DIM, HEADS, DEPTH, PATCH, GRID = 48, 3, 2, 14, 5
SIZE = 56
"""Side of the exported pictures: a grid of 4, so that the position embedding is resampled inside the graph."""


class Embeddings(nn.Module):
    """With `constant`, the exporter knows the width and lays the grid out itself; else it leaves that to the graph."""

    def __init__(self):
        super().__init__()
        self.constant = False
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.position_embeddings = nn.Parameter(torch.randn(1, 1 + GRID**2, DIM))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, DIM, PATCH, PATCH)

    def forward(self, images):
        patches = self.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        return tokens + self.positions(images.shape[-1] // PATCH, DIM if self.constant else tokens.shape[-1])

    def positions(self, grid, dim):
        known = self.position_embeddings
        if grid == GRID:
            return known
        square = known[:, 1:].reshape(1, GRID, GRID, dim).permute(0, 3, 1, 2)
        square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
        return torch.cat([known[:, :1], square.permute(0, 2, 3, 1).reshape(1, -1, dim)], dim=1)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x):
        parts = (layer(x).view(*x.shape[:-1], HEADS, DIM // HEADS) for layer in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(2, 3) / (DIM // HEADS) ** 0.5).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).reshape(x.shape)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.rand(DIM) + 0.5)

    def forward(self, x):
        return x * self.lambda1


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(DIM, eps=1e-6) for _ in range(2))
        self.attention = nn.Module()
        self.attention.attention = SelfAttention()
        self.attention.output = nn.Module()
        self.attention.output.dense = nn.Linear(DIM, DIM)
        self.layer_scale1, self.layer_scale2 = LayerScale(), LayerScale()
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        x = x + self.layer_scale1(self.attention.output.dense(self.attention.attention(self.norm1(x))))
        return x + self.layer_scale2(self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x)))))


class Dinov2(nn.Module):
    """Features [batch, 1 + patches, DIM] after the final norm."""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.layernorm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, images):
        x = self.embeddings(images)
        for layer in self.encoder.layer:
            x = layer(x)
        return self.layernorm(x)


class Saliency(nn.Module):
    """A head that has matrices of its own behind the backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = Dinov2()
        self.decoder = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, 1))

    def forward(self, images):
        return self.decoder(self.backbone(images)[:, 1:]).sigmoid()


def saliency():
    """The model with weights that no norm, bias or scale leaves at its starting value."""
    torch.manual_seed(4)
    model = Saliency().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def export(model, path, size=SIZE):
    """Writes the model as the TorchScript exporter does, which is where matrices lose their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter, about itself
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the grid is a constant of the graph, as is meant
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
            path,
            dynamo=False,
            opset_version=14,
            input_names=["input_image"],
            dynamic_axes={"input_image": {0: "batch_size"}},
        )
    return path
