"""A small transformer of torch that reads characters and predicts the next ones."""

from __future__ import annotations

import torch

CONTEXT = 64  # characters that it reads at once
WIDTH, HEADS, LAYERS = 192, 4, 4


class Network(torch.nn.Module):
    """Scores of each next character, shape (texts, CONTEXT, characters), of text (texts, CONTEXT)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = torch.nn.Embedding(characters, WIDTH)
        self.positions = torch.nn.Embedding(CONTEXT, WIDTH)
        self.blocks = torch.nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.output = torch.nn.Linear(WIDTH, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        read = self.characters(text) + self.positions.weight
        scores: torch.Tensor = self.output(self.norm(self.blocks(read)))
        return scores


class Block(torch.nn.Module):
    """Attention to what was read before, then a layer of hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attention = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.mixed = torch.nn.Linear(WIDTH, WIDTH)
        self.hidden = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixed(self.attended(self.norm1(x)))
        return x + self.hidden(self.norm2(x))

    def attended(self, x: torch.Tensor) -> torch.Tensor:
        texts, length, _ = x.shape
        heads = self.attention(x).view(texts, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        flat: torch.Tensor = mixed.transpose(1, 2).reshape(texts, length, WIDTH)
        return flat


def loss(network: Network, text: torch.Tensor) -> torch.Tensor:
    """Nats per character, of texts of CONTEXT + 1 characters each; a float32 in every dtype."""
    scores = network(text[:, :-1]).float()
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())
