"""The web service: pictures in, labels and frequency heatmaps out. `service.app.create_app` builds it."""
