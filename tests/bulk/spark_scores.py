"""`mapInArrow` with a Scorer on local Spark. Writes the results as JSON. Runs in a separate environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession

model, path = sys.argv[1:]


def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from recommender.bulk import Scorer  # noqa: PLC0415 (in Spark's worker)

    scorer = Scorer(model, threads=1)
    for batch in batches:
        scored = scorer(pa.Table.from_batches([batch]))
        yield from scored.select(["user", "item_ids", "scores", "error"]).to_batches()


builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.config("spark.pyspark.python", sys.executable).getOrCreate()
schema = "user bigint, item_ids array<int>, scores array<float>, error string"
rows = spark.read.parquet(path).select("user", "item_ids").repartition(2).mapInArrow(score, schema).collect()
spark.stop()
json.dump({row.user: row.asDict() for row in rows}, sys.stdout)
