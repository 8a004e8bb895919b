"""Where numbers of the business and delayed labels come from: SQL (SQLite, PostgreSQL) and Prometheus.

`protocol` says what a provider is; `sql` and `prometheus` are two; `rows` makes a reading of what they answer;
`opening` finds the one for a URL. A provider reads and judges nothing: verdicts are made in `control.analysis`,
from a `Reading`. What may not live here: anything that writes to the outside system, and anything of `patterns`.
"""
