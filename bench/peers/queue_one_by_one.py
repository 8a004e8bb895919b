"""What is written first: take a message, score it, write its row, store its offset.

    python queue_one_by_one.py MODEL BROKER TOPIC GROUP DATABASE TABLE

Offsets are committed behind the rows every five seconds, so that a crash repeats some and loses none.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime

import numpy as np
import onnxruntime
import psycopg
from confluent_kafka import Consumer
from psycopg.types.json import Jsonb

FEATURES = [f"f{i}" for i in range(30)]


def main(model: str, broker: str, topic: str, group: str, database: str, table: str) -> None:
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    consumer.subscribe([topic])
    insert = f'insert into "{table}" values (%s, %s, %s, %s, %s, %s) on conflict (message_id) do nothing'
    with psycopg.connect(database, autocommit=True) as connection:
        while going:
            message = consumer.poll(0.1)
            if message is None or message.error():
                continue
            row = json.loads(message.value())
            features = np.array([[row[name] for name in FEATURES]], np.float32)
            label, probabilities = session.run(None, {"features": features})
            values = (row["id"], int(label[0]), Jsonb(probabilities[0].tolist()), "fraud", 1, datetime.now(UTC))
            connection.execute(insert, values)
            consumer.store_offsets(message)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
