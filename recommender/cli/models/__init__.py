"""`recommender models`: what there is to serve, and what happens to it."""

from recommender.cli.models.adapting import adapt
from recommender.cli.models.attaching import card
from recommender.cli.models.commands import app

app.command()(card)
app.command()(adapt)

__all__ = ["app"]
