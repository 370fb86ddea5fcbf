"""Checks rendered objects against the API schemas of several versions of Kubernetes.

Strictly: a field that the API does not know is a fault. Kinds of operators, which Kubernetes has no
schema for, must be on a list with their API version; their fields are not checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import kubernetes_validate.utils as schemas

from tools.chart.helm import Object

VERSIONS = ("1.27", "1.29", "1.31", "1.33", "1.35", "1.37")
"""From the oldest that Chart.yaml allows to the newest with published schemas."""

OPERATORS = {
    ("cert-manager.io/v1", "Certificate"),
    ("cert-manager.io/v1", "Issuer"),
    ("external-secrets.io/v1", "ExternalSecret"),
    ("external-secrets.io/v1beta1", "ExternalSecret"),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
}
"""API version and kind of what operators bring."""

# The library reads megabytes of definitions anew for each object.
schemas.schema_contents = cache(schemas.schema_contents)


def name_of(found: Object) -> str:
    """Kind and name, for people."""
    return f"{found.get('kind')}/{found.get('metadata', {}).get('name')}"


def faults(objects: Iterable[Object], version: str) -> Iterator[str]:
    """What that version of Kubernetes would refuse, one line each."""
    for found in objects:
        if (found.get("apiVersion"), found.get("kind")) in OPERATORS:
            continue
        try:
            schemas.validate(found, version, strict=True)
        except schemas.ValidationError as wrong:
            path = ".".join(str(part) for part in wrong.path)
            yield f"{name_of(found)}: {path}: {wrong.message}"
        except schemas.SchemaNotFoundError:
            yield f"{name_of(found)}: Kubernetes {version} has no {found['apiVersion']}"
