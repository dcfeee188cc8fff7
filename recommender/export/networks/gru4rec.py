"""A GRU4Rec-style network: a recurrent state carried through the history is the user's vector.

After Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (2016).
"""

from __future__ import annotations

from torch import Tensor, nn

from recommender.export.networks.network import last_state


class Gru4Rec(nn.Module):
    """A GRU of `layers` layers over at most `longest_history` items; see `Network` for its methods."""

    def __init__(self, items: int, dim: int, layers: int, longest_history: int) -> None:
        super().__init__()
        self.longest_history = longest_history
        self.items = nn.Embedding(items, dim)
        self.gru = nn.GRU(dim, dim, num_layers=layers, batch_first=True)

    def forward(self, user_history: Tensor, history_length: Tensor) -> Tensor:
        """See `Network`."""
        states, _ = self.gru(self.items(user_history))
        return last_state(states, history_length)

    def item_embeddings(self) -> Tensor:
        """See `Network`."""
        weight: Tensor = self.items.weight
        return weight
