"""What people look at the metrics with: a dashboard for Grafana, alerts and a scrape configuration for Prometheus."""
