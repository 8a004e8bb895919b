"""The best bare loop: take a batch, decode, run ONNX Runtime, write it in bulk, store the offsets, again.

    python queue_bare.py MODEL BROKER TOPIC GROUP DATABASE TABLE

No dead letters, no retries, no fencing, no counts of attempts: a bad message ends it, and after a crash rows come
again, which the table's key passes over. Tuned: one typed decode a message, one statement a batch with arrays as text
(a COPY into a temporary table costs more), and a collector that leaves it alone.
"""

from __future__ import annotations

import gc
import signal
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import psycopg
from confluent_kafka import Consumer

FEATURES = [f"f{i}" for i in range(30)]
BATCH = 1024
Row = msgspec.defstruct("Row", [("id", str), *((name, float) for name in FEATURES)], gc=False)


def main(model: str, broker: str, topic: str, group: str, database: str, table: str) -> None:
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Row).decode
    row_of = msgspec.structs.astuple
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 32 << 10,
        }
    )
    consumer.subscribe([topic])
    keep = (
        f'insert into "{table}" select id, label, chances::jsonb, %s, 1, %s '
        "from unnest(%s::text[], %s::bigint[], %s::text[]) as r(id, label, chances) on conflict (message_id) do nothing"
    )
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    with psycopg.connect(database) as connection:
        while going:
            messages: list[Any] = consumer.consume(BATCH, 0.05)
            if not messages:
                continue
            rows = [row_of(decode(message.value())) for message in messages]
            features = np.array([row[1:] for row in rows], np.float32)
            labels, probabilities = session.run(None, {"features": features})
            values = (
                "fraud",
                datetime.now(UTC),
                '{"' + '","'.join([row[0] for row in rows]) + '"}',  # the ids are plain
                "{" + ",".join(map(str, labels.tolist())) + "}",
                '{"' + '","'.join([encode(pair).decode() for pair in probabilities.tolist()]) + '"}',
            )
            connection.execute(keep, values)
            connection.commit()
            for message in {message.partition(): message for message in messages}.values():
                consumer.store_offsets(message)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:7])
