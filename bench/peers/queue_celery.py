"""Celery as its documentation has it: a task a message, acknowledged when it is done, results not kept.

    python queue_celery.py send REDIS FILE                     the lines of a file, a task each
    python queue_celery.py work REDIS MODEL DATABASE TABLE     one worker

Celery does not read Kafka; Redis is one of the two brokers that its documentation calls stable, and the lighter. The
solo pool spares the pipe to a child, prefetching and no gossip, events or heartbeats the rest.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psycopg
from celery import Celery
from psycopg.types.json import Jsonb

FEATURES = [f"f{i}" for i in range(30)]


def app_of(redis: str) -> Celery:
    app = Celery("queue", broker=redis)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=256,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return app


def send(redis: str, file: str) -> None:
    app = app_of(redis)
    with app.connection_for_write() as connection:
        connection.default_channel.client.flushdb()
        with app.amqp.Producer(connection) as producer:
            for line in Path(file).read_text().splitlines():
                app.send_task("score", args=[line], producer=producer, ignore_result=True)


def work(redis: str, model: str, database: str, table: str) -> None:
    app = app_of(redis)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    connection = psycopg.connect(database, autocommit=True)
    insert = f'insert into "{table}" values (%s, %s, %s, %s, %s, %s) on conflict (message_id) do nothing'

    @app.task(name="score")
    def score(text: str) -> None:
        row: dict[str, Any] = json.loads(text)
        features = np.array([[row[name] for name in FEATURES]], np.float32)
        label, probabilities = session.run(None, {"features": features})
        values = (row["id"], int(label[0]), Jsonb(probabilities[0].tolist()), "fraud", 1, datetime.now(UTC))
        connection.execute(insert, values)

    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    app.worker_main(["worker", "--pool=solo", *quiet])


if __name__ == "__main__":
    {"send": send, "work": work}[sys.argv[1]](*sys.argv[2:])
