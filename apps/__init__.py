"""Programs around a trained model; each is `python -m apps.NAME`."""
