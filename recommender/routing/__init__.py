"""Which version answers a request, also with a canary or a shadow."""
