# The auth service. Built from the repository's root:
#   docker build --file deploy/docker/auth.Dockerfile --tag anabranch/auth .
# It holds the client library, the chassis and this service, and no other service's code.

FROM python:3.11-slim-bookworm AS packages
COPY requirements/base.txt /build/
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --requirement /build/base.txt

FROM python:3.11-slim-bookworm AS code
# Without packages beside it this makes only the distribution's metadata: name and version.
COPY pyproject.toml README.md /metadata/
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --target /tmp/made /metadata \
 && mkdir /app && mv /tmp/made/anabranch-*.dist-info /app/
COPY anabranch /app/anabranch
COPY services/__init__.py /app/services/
COPY services/chassis /app/services/chassis
COPY services/auth /app/services/auth
# The root file system is read-only in production: the byte code is made here.
RUN python -m compileall -q /app

FROM python:3.11-slim-bookworm
# The same in every image: who it runs as, and where its code is.
RUN groupadd --gid 10001 anabranch \
 && useradd --uid 10001 --gid anabranch --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin anabranch \
 && install --directory --owner anabranch --group anabranch --mode 0700 /var/lib/anabranch /var/lib/anabranch/secrets /var/lib/anabranch/router-secret /var/lib/anabranch/audit
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/anabranch
COPY --from=packages /opt/venv /opt/venv
COPY --from=code /app /app
USER 10001:10001
EXPOSE 50054 9104
ENV ANABRANCH_AUTH_LISTEN=0.0.0.0:50054 ANABRANCH_AUTH_HTTP_LISTEN=0.0.0.0:9104
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9104/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "services.auth"]
