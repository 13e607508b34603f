"""What operators see of runs beside their record: log lines, spans, metrics; each listens to the engine."""
