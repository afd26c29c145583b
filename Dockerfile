# The embed/rerank server as an image, for amd64 and arm64.
#
#   docker build -t qmd-embed-rerank .
#   docker run -d --gpus all -p 127.0.0.1:8001:8001 --user "$(id -u):$(id -g)" \
#     -v ~/.cache/huggingface:/cache/huggingface qmd-embed-rerank
#
# BASE is any image with Python 3.11 or newer, pip and venv. PyPI's torch brings CUDA along, so a plain Python image
# serves an NVIDIA GPU. Without a GPU: --build-arg TORCH=cpu, which is 4 GB smaller. An image that has a torch of its
# own, such as nvcr.io/nvidia/pytorch, keeps that one. Weights are not in the image: they come into the mounted cache.
ARG BASE=python:3.12-slim
FROM ${BASE}

# pip's own options, for a mirror or for a folder of wheels: --build-arg PIP="--no-index --find-links /wheels"
ARG PIP=""
ARG TORCH=cuda

# one folder for all that is written at run time, usable by whatever user the container is run as
RUN useradd --uid 10001 --home-dir /cache --no-create-home qmd 2>/dev/null || adduser -D -u 10001 -h /cache -H qmd \
    ; mkdir -p /cache/huggingface /cache/qmd-remote && chmod -R 1777 /cache \
    && python3 -m venv --system-site-packages /opt/qmd-remote

# the dependencies first: they are many gigabytes, and change seldom
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN mkdir qmd_remote && echo '__version__ = "0"' > qmd_remote/__init__.py \
    && if [ "$TORCH" = cpu ]; then index="--extra-index-url https://download.pytorch.org/whl/cpu"; fi \
    && /opt/qmd-remote/bin/pip install --no-cache-dir --disable-pip-version-check $PIP ${index:-} '.[server]' \
    && /opt/qmd-remote/bin/pip uninstall -y -q qmd-remote

COPY qmd_remote qmd_remote
RUN /opt/qmd-remote/bin/pip install --no-cache-dir --disable-pip-version-check $PIP --no-deps . && rm -rf /src/*

# Inside a container 0.0.0.0 is the only address that can be published. Where to, and with which key, is up to who runs
# it: without a key the server says so in its log.
ENV PATH=/opt/qmd-remote/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    QMD_REMOTE_HOME=/cache/qmd-remote \
    QMD_REMOTE_HOST=0.0.0.0 \
    QMD_REMOTE_INSECURE_NO_AUTH=1 \
    QMD_REMOTE_GENERATION=off \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 10001
WORKDIR /cache
EXPOSE 8001
VOLUME ["/cache/huggingface"]

# models may have to be downloaded first
HEALTHCHECK --interval=10s --timeout=10s --start-period=30m --retries=3 \
    CMD ["python3", "-m", "qmd_remote.server.probe"]

ENTRYPOINT ["qmd-remote"]
CMD ["serve"]
