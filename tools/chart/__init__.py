"""Checks of the Helm chart in deploy/helm/anabranch, and the page of its values."""
