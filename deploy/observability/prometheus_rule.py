"""The rules as the object that the Prometheus Operator reads: written by `just dashboards`, compared by its check.

python deploy/observability/prometheus_rule.py [--check]
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Written from deploy/observability/rules.yaml by `just dashboards`; a check compares.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: recommender
  namespace: recommender
"""


def written() -> str:
    """The file as it should be: the groups as they stand, two columns further in."""
    text = (HERE / "rules.yaml").read_text(encoding="utf-8")
    return HEAD + "spec:\n" + textwrap.indent(text[text.index("groups:") :], "  ")


if __name__ == "__main__":
    if "--check" not in sys.argv:
        OUT.write_text(written(), encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != written():
        sys.exit(f"{OUT} is not what rules.yaml says: run `just dashboards`")
