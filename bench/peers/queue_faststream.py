"""FastStream as its documentation has it, at its best: batches, messages as a pydantic model, offsets committed after.

    python queue_faststream.py MODEL BROKER TOPIC GROUP DATABASE TABLE

confluent-kafka is the faster of its two clients. Rows are written in bulk, as the bare loop does.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnxruntime
import psycopg
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker
from pydantic import BaseModel, create_model

FEATURES = [f"f{i}" for i in range(30)]
BATCH = 1024
Row: Any = create_model("Row", __base__=BaseModel, id=(str, ...), **dict.fromkeys(FEATURES, (float, ...)))


async def serve(model: str, broker: str, topic: str, group: str, database: str, table: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    copy = "copy taken (message_id, label, probabilities, model, version, scored_at) from stdin"
    keep = f'insert into "{table}" select * from taken on conflict (message_id) do nothing'
    connection = await psycopg.AsyncConnection.connect(database)
    await connection.execute(f'create temp table taken (like "{table}") on commit delete rows')
    await connection.commit()
    kafka = KafkaBroker(broker, logger=None)

    async def score(rows: list[Row]) -> None:
        features = np.array([[getattr(row, name) for name in FEATURES] for row in rows], np.float32)
        labels, probabilities = session.run(None, {"features": features})
        at = datetime.now(UTC).isoformat()
        lines = [
            f"{row.id}\t{label}\t[{no!r}, {yes!r}]\tfraud\t1\t{at}\n"
            for row, label, (no, yes) in zip(rows, labels.tolist(), probabilities.tolist(), strict=True)
        ]
        async with connection.cursor() as cursor:
            async with cursor.copy(copy) as into:
                await into.write("".join(lines))
            await cursor.execute(keep)
        await connection.commit()

    score.__annotations__["rows"] = list[Row]
    kafka.subscriber(
        topic, group_id=group, batch=True, max_records=BATCH, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK
    )(score)
    await FastStream(kafka, logger=None).run(log_level=logging.WARNING)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
