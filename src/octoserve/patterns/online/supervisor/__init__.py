"""The process that keeps a service: its workers, its control loop, its admin API. It never loads a model."""
