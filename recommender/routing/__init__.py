"""Which version answers, also beside a canary or a shadow."""
