"""Clients in Python, asynchronous and synchronous: one import, typed, a deadline on every call.

Both retry what is safe to retry: UNAVAILABLE by gRPC's own service config, and RESOURCE_EXHAUSTED only if
the server says when to come back, since gRPC uses that status for oversize messages too.
"""

from recommender.api.values import Feature, feature_value
from recommender.client.answers import Recommendations, Refusal
from recommender.client.asynchronous import Client
from recommender.client.changes import NewItem
from recommender.client.connection import SERVICE_CONFIG
from recommender.client.requests import Boost, MaxPer, Options, Request
from recommender.client.synchronous import SyncClient

__all__ = [
    "SERVICE_CONFIG",
    "Boost",
    "Client",
    "Feature",
    "MaxPer",
    "NewItem",
    "Options",
    "Recommendations",
    "Refusal",
    "Request",
    "SyncClient",
    "feature_value",
]
