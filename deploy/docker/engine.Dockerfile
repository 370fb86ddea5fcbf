# The local engine: vLLM behind the contract. Two images, built from the repository's root:
#   docker build --file deploy/docker/engine.Dockerfile --target cpu --tag anabranch/engine:cpu \
#       --build-arg PIP_EXTRA_INDEX_URL=… .      (PyTorch's own CPU index)
#   docker build --file deploy/docker/engine.Dockerfile --target gpu --tag anabranch/engine:gpu .
# They hold the client library, the chassis and this service, and no other service's code.

FROM python:3.11-slim-bookworm AS code
# Without packages beside it this makes only the distribution's metadata: name and version.
COPY pyproject.toml README.md /metadata/
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --target /tmp/made /metadata \
 && mkdir /app && mv /tmp/made/anabranch-*.dist-info /app/
COPY anabranch /app/anabranch
COPY services/__init__.py /app/services/
COPY services/chassis /app/services/chassis
COPY services/local_engine /app/services/local_engine

FROM python:3.11-slim-bookworm AS cpu-packages
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements/base.txt requirements/engine-cpu.txt /build/
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --requirement /build/base.txt \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --requirement /build/engine-cpu.txt

FROM python:3.11-slim-bookworm AS cpu
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=cpu-packages /opt/venv /opt/venv
# The same in every image: who it runs as, and where its code is.
RUN groupadd --gid 10001 anabranch \
 && useradd --uid 10001 --gid anabranch --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin anabranch \
 && install --directory --owner anabranch --group anabranch --mode 0700 /var/lib/anabranch
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/anabranch
COPY --from=code /app /app
RUN python -m compileall -q /app
USER 10001:10001
EXPOSE 50052 9102
# vLLM and its parts write caches below the home directory.
ENV HOME=/var/lib/anabranch VLLM_CPU_KVCACHE_SPACE=2 \
    ANABRANCH_ENGINE_LISTEN=0.0.0.0:50052 ANABRANCH_ENGINE_HTTP_LISTEN=0.0.0.0:9102
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9102/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "services.local_engine"]

# vLLM's own image brings CUDA, PyTorch and vLLM for its Python, matched to each other.
FROM vllm/vllm-openai:v0.25.1 AS gpu
COPY requirements/base.txt /build/
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --requirement /build/base.txt
# The same in every image: who it runs as, and where its code is.
RUN groupadd --gid 10001 anabranch \
 && useradd --uid 10001 --gid anabranch --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin anabranch \
 && install --directory --owner anabranch --group anabranch --mode 0700 /var/lib/anabranch
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/anabranch
COPY --from=code /app /app
RUN python3 -m compileall -q /app
USER 10001:10001
EXPOSE 50052 9102
ENV HOME=/var/lib/anabranch \
    ANABRANCH_ENGINE_LISTEN=0.0.0.0:50052 ANABRANCH_ENGINE_HTTP_LISTEN=0.0.0.0:9102
HEALTHCHECK --interval=5s --timeout=3s --start-period=900s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9102/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "services.local_engine"]
