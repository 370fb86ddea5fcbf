"""Grafana dashboards as code: what they show is in `boards`, how Grafana writes it in `grafana`.

`make dashboards` writes the JSON files that the chart and docker-compose.yml ship. Nothing here is
needed at run time.
"""
