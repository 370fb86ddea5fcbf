"""TEMPORARY."""


def credential_headers(route, secret, url, body, now):
    if secret is None or route.profile.auth_scheme == "none":
        return {}
    if route.profile.auth_scheme == "header":
        return {route.profile.auth_header: secret.reveal()}
    return {"Authorization": f"Bearer {secret.reveal()}"}


def without_secret(body, secret):
    return body.replace(secret.reveal().encode(), b"***")
