"""Prometheus, Alertmanager and Grafana for runs: what they read, and a command that brings them up."""
