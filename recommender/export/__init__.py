"""From a torch network to a model file that the server runs; needs the `model` extra, and nothing else imports it."""

from recommender.export.errors import ExportError
from recommender.export.exporter import Progress, export_model
from recommender.export.options import ExportOptions

__all__ = ["ExportError", "ExportOptions", "Progress", "export_model"]
